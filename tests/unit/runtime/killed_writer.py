"""Script: kill a process that writes an artefact, at every step and at random moments.

Arguments: an empty folder, and "atomic" or "careless" (a writer that must be found out).
After each kill the artefact has to be the old or the new one, and the next write has to clear
away what is left. Prints the number of kills, or what is wrong.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nxdi.errors import ArtifactError
from nxdi.runtime import store

ROOT = Path(sys.argv[1])
TARGET = ROOT / "model"
STEPS = [
    *[(os, "replace"), (os, "fsync"), (shutil, "rmtree")],
    *[(Path, "mkdir"), (Path, "write_bytes"), (Path, "rename")],
]
NAMES = ("a", "b", "c")


@contextmanager
def careless_directory(target: Path) -> Iterator[Path]:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    yield target


def content(generation: int) -> bytes:
    return b"%d," % generation * 1000


def write(generation: int) -> None:
    def populate(folder: Path) -> None:
        for name in NAMES:
            (folder / name).write_bytes(content(generation))

    manifest = store.Manifest(
        library_version="1",
        torch_version="1",
        compiler_version="1",
        platform="cpu",
        backend="cpu",
        config={"generation": generation},
        graphs=[],
        kernels=[],
        weights={},
    )
    store.write_artifact(TARGET, manifest, populate)


def write_for_ever() -> None:
    for generation in range(10**6):
        write(generation)


def kill_at(step: int) -> None:
    """Kill this process just before its `step`-th call that changes the disk."""
    calls = 0

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return counted

    for owner, name in STEPS:
        setattr(owner, name, wrap(getattr(owner, name)))


def fork(body: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        body()
        os._exit(0)
    return child


def check(allowed: Collection[int | None]) -> None:
    """Exit unless TARGET is sound and of an allowed generation (None: there is nothing)."""
    generation = None
    try:
        generation = store.open_artifact(TARGET).config["generation"]
    except ArtifactError as error:
        if TARGET.exists():
            fail(f"a mix: {error}")
    if generation not in allowed:
        fail(f"generation {generation}")
    if generation is not None and {(TARGET / name).read_bytes() for name in NAMES} != {
        content(generation)
    }:
        fail("a mix that was not noticed")


def check_next_write() -> None:
    write(0)
    if left := [path.name for path in ROOT.iterdir() if path.name not in ("model", ".model.lock")]:
        fail(f"left over: {left}")


def fail(problem: str) -> None:
    print("BROKEN", problem)
    sys.exit(1)


def kill_at_every_step(old: int | None) -> int:
    for step in range(1, 100):
        if old is None:
            shutil.rmtree(TARGET, ignore_errors=True)
        else:
            write(old)
        child = fork(lambda step=step: (kill_at(step), write(2)))
        if os.waitpid(child, 0)[1] == 0:
            return step - 1
        check({old, 2})
        check_next_write()
    return 0


def kill_at_random_moments(kills: int) -> int:
    rng = random.Random(4)
    for _ in range(kills):
        child = fork(write_for_ever)
        time.sleep(rng.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        check(range(10**6))
        check_next_write()
    return kills


if sys.argv[2] == "careless":
    store.atomic_directory = careless_directory
print("kills", kill_at_every_step(None) + kill_at_every_step(1) + kill_at_random_moments(170))

"""The cache of compiled pieces: built once, whole or absent, and mended when damaged."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nxdi.runtime.compile_cache import cache_key, get_or_build

KEY = cache_key({"graph": "layer", "flags": ["-O3"]})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NXDI_CACHE_DIR", str(tmp_path))
    return tmp_path


def build(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "piece.so").write_bytes(b"machine code" * 20)
    (folder / "deep" / "notes").write_bytes(b"x")


def never(folder: Path) -> None:
    raise AssertionError("built a piece that is there")


def test_equal_parts_have_equal_keys():
    assert cache_key({"a": 1, "b": [2]}) == cache_key({"b": [2], "a": 1})
    assert len(KEY) == 64


@pytest.mark.parametrize("parts", [{}, {"a": 2}, {"a": "1"}, {"a": None}, {"b": 1}, {"a": [1]}])
def test_different_parts_have_different_keys(parts: dict[str, object]):
    assert cache_key(parts) != cache_key({"a": 1})


def test_parts_that_are_not_plain_json_have_no_key():
    with pytest.raises(TypeError, match="not JSON serializable"):
        cache_key({"a": object()})


def test_a_piece_is_built_once(cache: Path):
    folder = get_or_build(KEY, build)
    assert folder == cache / "pieces" / KEY[:2] / KEY
    assert (folder / "piece.so").read_bytes() == b"machine code" * 20
    assert get_or_build(KEY, never) == folder


def test_another_key_is_another_piece():
    other = cache_key({"graph": "layer", "flags": ["-O2"]})
    assert get_or_build(KEY, build) != get_or_build(other, build)


def test_a_failed_build_leaves_nothing(hidden_entries: Callable[[Path], list[str]], cache: Path):
    def fail(folder: Path) -> None:
        build(folder)
        raise RuntimeError("the compiler broke")

    with pytest.raises(RuntimeError, match="the compiler broke"):
        get_or_build(KEY, fail)
    parent = cache / "pieces" / KEY[:2]
    assert not (parent / KEY).exists()
    assert hidden_entries(parent) == []
    get_or_build(KEY, build)


def test_any_damage_is_mended():
    rng = random.Random(5)
    folder = get_or_build(KEY, build)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sound = {path: path.read_bytes() for path in files}
    for path in files * 20:
        damaged = bytearray(sound[path])
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        get_or_build(KEY, build)
        assert {path: path.read_bytes() for path in files} == sound


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "piece.so").unlink(),
        lambda folder: (folder / "checksums.json").unlink(),
        lambda folder: (folder / "checksums.json").write_text("[]"),
        lambda folder: (folder / "extra.so").touch(),
        lambda folder: (folder / "link").symlink_to("piece.so"),
    ],
)
def test_a_piece_with_wrong_files_is_built_again(damage: Callable[[Path], Any]):
    folder = get_or_build(KEY, build)
    damage(folder)
    get_or_build(KEY, build)
    assert sorted(path.name for path in folder.iterdir()) == ["checksums.json", "deep", "piece.so"]
    get_or_build(KEY, never)


def test_a_piece_that_cannot_be_read_is_built_again(monkeypatch: pytest.MonkeyPatch):
    get_or_build(KEY, build)
    builds: list[Path] = []

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, "read_bytes", fail)
    get_or_build(KEY, lambda folder: builds.append(folder))
    assert len(builds) == 1


def test_every_disk_error_leaves_no_piece(
    cache: Path, disk: Any, hidden_entries: Callable[[Path], list[str]]
):
    parent = cache / "pieces" / KEY[:2]
    parent.mkdir(parents=True)
    failures = 0
    for error in disk.failures(lambda: get_or_build(KEY, build), errno.ENOSPC):
        failures += 1
        assert "free some disk space" in str(error)
        assert not (parent / KEY).exists()
        assert hidden_entries(parent) == []
    assert failures > 8, "the disk never failed: the test tests nothing"
    get_or_build(KEY, never)


def test_threads_build_once():
    builds: list[Path] = []

    def slow_build(folder: Path) -> None:
        builds.append(folder)
        build(folder)

    threads = [threading.Thread(target=get_or_build, args=(KEY, slow_build)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


WORKER = """
import os, signal, sys, time
from pathlib import Path
from nxdi.runtime.compile_cache import get_or_build

key, log, ending = sys.argv[1], Path(sys.argv[2]), sys.argv[3]

def build(folder):
    with log.open("a") as file:
        file.write("built\\n")
    (folder / "half").write_bytes(b"x" * 1000)
    time.sleep(0.1)
    if ending == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "piece.so").write_bytes(b"x" * 1000)

print("ready", flush=True)
while not log.exists():
    time.sleep(0.001)
print(get_or_build(key, build))
"""


def test_processes_build_once(tmp_path: Path, start_script: Callable[..., Any]):
    log = tmp_path / "log"
    workers = [start_script(WORKER, KEY, log, "ended") for _ in range(8)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    log.touch()  # all start at once
    printed = {worker.communicate(timeout=60)[0] for worker in workers}
    assert printed == {f"{get_or_build(KEY, never)}\n"}
    assert log.read_text() == "built\n"


def test_a_killed_build_leaves_nothing_visible(
    cache: Path, start_script: Callable[..., Any], hidden_entries: Callable[[Path], list[str]]
):
    log, parent = cache / "log", cache / "pieces" / KEY[:2]
    log.touch()
    assert start_script(WORKER, KEY, log, "killed").wait(timeout=60) < 0
    assert not (parent / KEY).exists()
    assert len(hidden_entries(parent)) == 1
    get_or_build(KEY, build)
    assert hidden_entries(parent) == []

"""What the tests of durable files share: a disk that fails on demand, other processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nxdi.errors import ArtifactError

STEPS = [(os, "replace"), (os, "fsync"), (Path, "mkdir"), (Path, "write_bytes")]


class Disk:
    """Counts the calls that change the disk, and fails those the test asks for."""

    def __init__(self) -> None:
        self.heal()

    def fail(self, first: int, code: int = errno.ENOSPC, last: int | None = None) -> None:
        """Fail call `first` (from 1), or `first` to `last`, with the OS error `code`."""
        self.calls, self.failing, self.code = 0, range(first, (last or first) + 1), code

    def heal(self) -> None:
        self.calls, self.failing, self.code = 0, range(0), 0

    def failures(self, action: Callable[[], object], code: int) -> Iterator[ArtifactError]:
        """Do `action` with its first call failing, its second, ... until it gets through."""
        for failing in range(1, 1000):
            self.fail(failing, code)
            try:
                action()
            except ArtifactError as error:
                self.heal()
                yield error
            else:
                self.heal()
                return

    def fails_now(self) -> bool:
        self.calls += 1
        return self.calls in self.failing


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if not disk.fails_now():
                return real(*args, **kwargs)
            if real.__name__ == "write_bytes":  # a full disk takes the first part
                real(args[0], args[1][: len(args[1]) // 2])
            raise OSError(disk.code, os.strerror(disk.code), str(args[0]))

        return step

    for owner, name in STEPS:
        monkeypatch.setattr(owner, name, wrap(getattr(owner, name)))
    return disk


@pytest.fixture
def start_script() -> Callable[..., subprocess.Popen[str]]:
    """Starts a Python script, given as text, in a process of its own."""

    def start(script: str, *args: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, *map(str, args)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    return start


@pytest.fixture
def hidden_entries() -> Callable[[Path], list[str]]:
    """Lists what is left over in a folder: hidden entries other than locks."""

    def hidden(folder: Path) -> list[str]:
        names = sorted(path.name for path in folder.iterdir())
        return [name for name in names if name[0] == "." and not name.endswith(".lock")]

    return hidden

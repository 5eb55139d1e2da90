"""Porting files and folders: reading them, and writing what came out."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from nxdi.errors import ConfigError, UnsupportedError
from nxdi.port.findings import Finding, port
from nxdi.port.source import decode


class PortedFile(NamedTuple):
    """A source file before and after, or why it could not be ported."""

    path: Path
    old: str = ""
    new: str = ""
    encoding: str = "utf-8"
    findings: tuple[Finding, ...] = ()
    error: str = ""

    @property
    def is_changed(self) -> bool:
        return self.new != self.old


def port_path(path: Path) -> list[PortedFile]:
    """Port one file, or all `.py` files of a folder but hidden ones; nothing is written.

    Raises: ConfigError if there is no such file, or no source in the folder; UnsupportedError if
    the one file cannot be ported.
    """
    with _explained(path):
        if path.is_dir():
            files = [port_file(file) for file in _python_files(path)]
            if not files:
                raise ConfigError(f"{path} holds no .py file; give another folder")
            return files
        if not path.exists() and not path.is_symlink():
            raise ConfigError(f"{path} does not exist; give a Python file or a folder")
    file = port_file(path)
    if file.error:
        raise UnsupportedError(f"{path}: {file.error}")
    return [file]


def port_file(path: Path) -> PortedFile:
    """Port one file; nothing is written. What stands in the way goes to `error`."""
    try:
        if path.is_symlink():
            raise UnsupportedError(f"a symbolic link to {os.readlink(path)}; port that instead")
        if not path.is_file():
            raise UnsupportedError("not a regular file; give Python source files")
        old, encoding = decode(path.read_bytes())
        new, findings = port(old)
    except OSError as error:
        return PortedFile(path, error=f"cannot be read ({error.strerror}); see its permissions")
    except UnsupportedError as error:
        return PortedFile(path, error=str(error))
    return PortedFile(path, old, new, encoding, tuple(findings))


def write_in_place(files: list[PortedFile]) -> None:
    """Replace every changed file, each at once or not at all.

    Raises: UnsupportedError before anything is written if one is read-only; ConfigError if the
    disk refuses.
    """
    changed = [file for file in files if file.is_changed]
    for file in changed:
        if not file.path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
            raise UnsupportedError(f"{file.path} is read-only; make it writable or use --out")
    for file in changed:
        with _explained(file.path):
            _replace(file.path, file.new.encode(file.encoding))


def write_copy(source: Path, out: Path, files: list[PortedFile]) -> None:
    """Write a copy of a folder (or of one file, into a folder) with the changed files ported.

    `out` appears complete or not at all. Raises: ConfigError if it exists, or is in `source`.
    """
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists; choose a folder that does not")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"{out} is within {source}; choose a folder beside it")
    with _explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
            copy = Path(scratch) / out.name
            if source.is_dir():
                shutil.copytree(
                    source, copy, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
                )
            else:
                copy.mkdir()
                shutil.copy(source, copy)
            for file in files:
                if file.is_changed:
                    below = file.path.relative_to(source) if source.is_dir() else file.path.name
                    _replace(copy / below, file.new.encode(file.encoding))
            os.rename(copy, out)


def _python_files(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    for where, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__pycache__")
        yield from (Path(where, f) for f in sorted(files) if f.endswith(".py") and f[0] != ".")


def _replace(path: Path, data: bytes) -> None:
    """Give a file new content and its old permissions, at once or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        shutil.copymode(path, name)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: {error}; choose another folder or see permissions") from error

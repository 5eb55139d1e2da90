"""Durable files: what is written here is seen whole or not at all, whatever fails and whenever.

New content is prepared under a hidden name beside its target, forced to disk and renamed into
place, all under the target's lock. The operating system frees the lock of a killed process, so
what carries a target's hidden name while its lock is free is a left-over, and the next write to
that folder clears it away.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock

from nxdi.errors import ArtifactError

_BLOCK = 1 << 20  # bytes per read while hashing
_NEW = "nxdi-new"  # being written, or being deleted
_OLD = "nxdi-old"  # complete, moved aside until its successor is in place
_HIDDEN = re.compile(rf"\.(?P<name>.+)\.\d+-[0-9a-f]{{8}}\.(?P<kind>{_NEW}|{_OLD})")
_REMEDIES = {
    errno.ENOSPC: "free some disk space or choose another folder",
    errno.EDQUOT: "free some of your disk quota or choose another folder",
    errno.EROFS: "choose a folder on a file system that can be written to",
    errno.EACCES: "choose a folder you have permission for, or change its permissions",
    errno.EPERM: "choose a folder you have permission for, or change its permissions",
    errno.EIO: "the disk reports a fault; choose a folder on another disk",
}


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into an ArtifactError: path, reason and remedy."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's own error, not the operating system's
            raise
        remedy = _REMEDIES.get(error.errno, "check this path and try again")
        raise ArtifactError(f"{path}: {error}; {remedy}") from error


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of `target` against all other threads and processes.

    The thread that holds it may take it again. A killed process lets go of its locks.
    """
    target = _real(target)
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(_lock_path(target), is_singleton=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a new empty folder that takes the place of `target` when the block succeeds.

    Raises: ArtifactError if the disk is full, read-only or faulty; `target` then stays as it was.
    """
    with _prepared(target) as (fresh, real):
        fresh.mkdir()
        yield fresh
        for path in (*fresh.rglob("*"), fresh):
            _sync(path)
        _swap(fresh, real)


def atomic_write(target: Path, data: bytes) -> None:
    """Write the file `target`: readers, and whoever comes after a crash, see it old or new.

    Raises: ArtifactError if the disk is full, read-only or faulty.
    """
    with _prepared(target) as (fresh, real):
        fresh.write_bytes(data)
        _sync(fresh)
        os.replace(fresh, real)
        _sync(real.parent)


def remove_directory(target: Path) -> None:
    """Delete the folder `target`; it is gone at once, even if its files take a while to go."""
    with _prepared(target) as (doomed, real):
        os.replace(real, doomed)
        _sync(real.parent)


def recover(target: Path) -> None:
    """Before reading `target`: put it back if its writer was killed between moving it aside
    and putting the new one in place."""
    target = _real(target)
    if target.exists() or not target.parent.is_dir():
        return
    if any(owner == target and kind == _OLD for _, owner, kind in _leftovers(target.parent)):
        with locked(target):
            _clear_leftovers(target)


def list_files(root: Path) -> dict[str, Path]:
    """Every file under `root` by its relative name, written with forward slashes.

    Raises: ArtifactError for a symbolic link or special file, which could lead out of `root`.
    """
    found = {}
    with explain_os_errors(root):
        for path in root.rglob("*"):
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found[path.relative_to(root).as_posix()] = path
            elif not stat.S_ISDIR(mode):
                raise ArtifactError(f"{path}: a link or special file has no place here; remove it")
    return found


def hash_files(files: Mapping[str, Path]) -> dict[str, dict[str, str | int]]:
    """`{name: {"sha256": ..., "size": bytes}}` of files, read in parallel."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(files, pool.map(_hash_and_size, files.values()), strict=True))


def sha256_file(path: Path) -> str:
    """Hex sha256 of the content of a file."""
    digest = hashlib.sha256()
    with explain_os_errors(path), open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(value: object) -> bytes:
    """The one JSON spelling of `value`, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@contextmanager
def _prepared(target: Path) -> Iterator[tuple[Path, Path]]:
    """Under the lock: a hidden path beside `target`, removed in the end, and `target` resolved."""
    real = _real(target)
    with locked(real), explain_os_errors(target):
        _clear_leftovers(real)
        hidden = _hidden(real, _NEW)
        try:
            yield hidden, real
        finally:
            _remove(hidden)


def _swap(fresh: Path, target: Path) -> None:
    """Rename `fresh` to `target`, and the folder there to `fresh`; undone if any step fails."""
    with ExitStack() as undo:

        def rename(old: Path, new: Path) -> None:
            os.replace(old, new)
            undo.callback(os.replace, new, old)

        aside = _hidden(target, _OLD)
        if target.is_dir():
            rename(target, aside)
        rename(fresh, target)
        if aside.exists():
            rename(aside, fresh)
        _sync(target.parent)
        undo.pop_all()


def _leftovers(parent: Path) -> list[tuple[Path, Path, str]]:
    """Hidden entries of `parent`: each with the target it belongs to and its kind."""
    matches = [(path, _HIDDEN.fullmatch(path.name)) for path in parent.iterdir()]
    return [(path, parent / match["name"], match["kind"]) for path, match in matches if match]


def _clear_leftovers(held: Path) -> None:
    """Clear what killed writers left beside `held`, whose lock the caller holds."""
    for path, target, kind in _leftovers(held.parent):
        lock = nullcontext() if target == held else FileLock(_lock_path(target), timeout=0)
        with suppress(OSError), lock:  # a lock that is taken is a writer at work: leave it alone
            if kind == _OLD and not target.exists():
                os.replace(path, target)
            else:
                _remove(path)


def _remove(path: Path) -> None:
    # What cannot be removed stays hidden, and the next write to this folder tries again.
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _hash_and_size(path: Path) -> dict[str, str | int]:
    with explain_os_errors(path):
        return {"sha256": sha256_file(path), "size": path.stat().st_size}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # a folder reached by two names has one lock


def _hidden(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.{kind}")


def _lock_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")

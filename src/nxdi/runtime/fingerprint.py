"""A hash of the code that graphs are made from, so that edited code never runs stale graphs."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from pathlib import Path

import nxdi

_SOURCES = ("*.py", "*.cpp", "*.h")


@functools.cache
def library_digest() -> str:
    """sha256 over every source file of this package."""
    root = Path(nxdi.__file__).parent
    files = sorted(path for pattern in _SOURCES for path in root.rglob(pattern))
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def code_version(*classes: type) -> str:
    """The library's version, with a digest of its code and of the modules that define `classes`."""
    digest = hashlib.sha256(library_digest().encode())
    for name in sorted({base.__module__ for cls in classes for base in cls.__mro__}):
        if name.split(".")[0] in ("nxdi", "torch", "builtins", "abc", "typing"):
            continue
        digest.update(name.encode() + b"\0" + _source(name) + b"\0")
    return f"{nxdi.__version__}+{digest.hexdigest()[:16]}"


def _source(module: str) -> bytes:
    """Source of an imported module; empty for one typed in interactively, which has none."""
    try:
        return inspect.getsource(sys.modules[module]).encode()
    except (OSError, TypeError, KeyError):
        return b""

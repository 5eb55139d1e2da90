"""The cache of compiled pieces: a folder for each piece, named by the hash of what it is made from.

A piece is a graph, a layer or a kernel. Equal parts lead to the same folder, so pieces are shared
by models and processes and never go stale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from nxdi import env
from nxdi.errors import ArtifactError
from nxdi.runtime.files import atomic_directory, canonical_json, hash_files, list_files, locked

_CHECKSUMS = "checksums.json"


def cache_key(parts: Mapping[str, object]) -> str:
    """Key of the piece made from `parts`: plain JSON that covers code, flags, versions, device."""
    return hashlib.sha256(canonical_json(parts)).hexdigest()


def get_or_build(key: str, build: Callable[[Path], None]) -> Path:
    """The folder of a piece; `build(folder)` makes its files if it is not there or is damaged.

    Of all processes that ask for a key, one builds and the others wait.

    Raises: what `build` raises; ArtifactError on a disk error. The cache is then as before.
    """
    target = env.cache_dir() / "pieces" / key[:2] / key
    if _is_intact(target):
        return target
    with locked(target):
        if not _is_intact(target):  # nobody built it while we waited
            with atomic_directory(target) as folder:
                build(folder)
                checksums = canonical_json(hash_files(list_files(folder)))
                (folder / _CHECKSUMS).write_bytes(checksums)
    return target


def _is_intact(folder: Path) -> bool:
    try:
        files = list_files(folder)
        recorded = json.loads(files.pop(_CHECKSUMS).read_bytes())
        return bool(recorded == hash_files(files))
    except (ArtifactError, OSError, KeyError, ValueError):
        return False

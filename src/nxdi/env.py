"""Every environment variable the library reads; nothing else reads `os.environ`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def cache_dir() -> Path:
    """`NXDI_CACHE_DIR`: where compiled graphs, kernels and automatic artefacts are kept.

    Default: `$XDG_CACHE_HOME/nxdi`, or `~/.cache/nxdi`.
    """
    chosen = os.environ.get("NXDI_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "nxdi"


def cxx() -> str | None:
    """`CXX`: the C++ compiler that builds graphs and kernels.

    Default: the first `g++` or `clang++` found.
    """
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def torchrun_world() -> tuple[int, int] | None:
    """`RANK` and `WORLD_SIZE` as torchrun sets them, or None outside torchrun."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return None

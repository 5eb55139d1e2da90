"""The library of this folder's C++ kernels: compiled on first use, loaded once, its operators.

A compiled graph that calls a kernel needs the library in its process: `load_library` loads a copy
that was kept beside the graph, without a compiler.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch._ops import OpOverload

from nxdi.errors import UnsupportedError
from nxdi.kernels.cpu.build import build_library
from nxdi.kernels.registry import Choice

NAMESPACE = "nxdi_cpu"
_FOLDER = Path(__file__).parent
_lock = threading.Lock()
_loaded: Path | None = None  # torch can register an operator once per process
_traceable: set[str] = set()


def load_op(name: str, result_of: Callable[..., Tensor]) -> OpOverload:
    """The operator `nxdi_cpu::<name>`, compiled and loaded if it is not yet.

    `result_of` gives the result while tracing: its shape and dtype, no values.
    Raises: UnsupportedError if it cannot be compiled or loaded here.
    """
    load_library(library_path())
    with _lock:
        if name not in _traceable:
            torch.library.register_fake(f"{NAMESPACE}::{name}", result_of)
            _traceable.add(name)
    op: OpOverload = getattr(getattr(torch.ops, NAMESPACE), name).default
    return op


def load_library(path: Path) -> None:
    """Load a library compiled before. A process uses the first one it loads to its end.

    Raises: UnsupportedError if the file is no library for this machine and this torch.
    """
    global _loaded
    with _lock:
        if _loaded is not None:
            return
        try:
            # Graphs find the operators' C functions by name, so they must be visible globally.
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise UnsupportedError(
                f"cannot load {path}: {error}; it may have been made for another machine or "
                f"another torch than {torch.__version__}: compile again here"
            ) from error
        _loaded = path


def library_path() -> Path:
    """The library in use, or else the one for this machine, compiled if need be (seconds).

    Raises: UnsupportedError if it cannot be compiled here.
    """
    return _loaded or build_library(_FOLDER)


def uses_library(choices: Iterable[Choice]) -> bool:
    """Whether one of the kernels chosen is in the library."""
    return any(choice.chosen.startswith(f"{NAMESPACE}::") for choice in choices)


def unsupported_reason() -> str | None:
    """Why the kernels cannot be used here, or None if they can."""
    try:
        load_library(library_path())
    except UnsupportedError as error:
        return str(error)
    return None

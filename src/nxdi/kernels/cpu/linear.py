"""The weight-streaming linear op of linear.cpp, as a torch operator that can be exported.

    op = load_linear_op()      # compiled on first use; UnsupportedError says why it cannot be
    y = op(x, weight, bias)    # float32 x, weight of float32, bfloat16 or float16

A compiled graph that calls the op needs the library in its process: `load_linear_library` loads a
copy that was kept beside the graph, without a compiler.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from nxdi.errors import ShapeError, UnsupportedError
from nxdi.kernels.cpu.build import build_library

_SOURCE = Path(__file__).with_name("linear.cpp")
_C_SHIM = (
    "AOTITorchError aoti_torch_cpu_linear(AtenTensorHandle x, AtenTensorHandle weight, "
    "AtenTensorHandle* bias, AtenTensorHandle* result)"
)
_lock = threading.Lock()
_loaded: Path | None = None  # torch can register an operator once per process


def load_linear_op() -> OpOverload:
    """`nxdi_cpu::linear(x, weight, bias=None)`, compiled and loaded if it is not yet.

    Shapes: x [..., K] float32, weight [N, K], bias [N] -> [..., N] float32; weight and bias are
            float32, bfloat16 or float16, and are never copied.
    Raises: UnsupportedError if it cannot be compiled or loaded here.
    """
    return load_linear_library(linear_library_path())


def load_linear_library(path: Path) -> OpOverload:
    """The op from a library compiled before. A process uses the first one it loads to its end.

    Raises: UnsupportedError if the file is no library for this machine and this torch.
    """
    global _loaded
    with _lock:
        if _loaded is None:
            try:
                # Graphs find the op's C function by its name, so it must be visible globally.
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                raise UnsupportedError(
                    f"cannot load {path}: {error}; it may have been made for another machine or "
                    f"another torch than {torch.__version__}: compile again here"
                ) from error
            torch.library.register_fake("nxdi_cpu::linear", _result_of)
            _loaded = path
    op: OpOverload = torch.ops.nxdi_cpu.linear.default
    return op


def linear_library_path() -> Path:
    """The library in use, or else the one for this machine, compiled if need be (seconds).

    Raises: UnsupportedError if it cannot be compiled here.
    """
    return _loaded or build_library(_SOURCE)


def linear_unsupported_reason() -> str | None:
    """Why the op cannot be used here, or None if it can."""
    try:
        load_linear_op()
    except UnsupportedError as error:
        return str(error)
    return None


def linear_inductor_options() -> dict[str, Any]:
    """AOTInductor options with which graphs call the op's C function, not torch's dispatcher.

    Raises: UnsupportedError if the op cannot be loaded here.
    """
    return {"aot_inductor.custom_ops_to_c_shims": {load_linear_op(): [_C_SHIM]}}


def _result_of(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The result while tracing: its shape and dtype, no values."""
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"linear: x is {tuple(x.shape)} and weight {tuple(weight.shape)}; "
            "x must be [..., K] for a weight of [N, K]"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(
            f"linear: bias is {tuple(bias.shape)}, but weight {tuple(weight.shape)} has "
            f"{weight.shape[0]} rows; bias must be [N]"
        )
    if x.dtype != torch.float32:
        raise ShapeError(f"linear: x is {x.dtype}; it must be float32, convert it with x.float()")
    return x.new_empty((*x.shape[:-1], weight.shape[0]))

"""The exact integer product of int8.cpp, as a candidate of the registry."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._ops import OpOverload

from nxdi.errors import ShapeError
from nxdi.kernels.cpu.library import load_op, unsupported_reason
from nxdi.kernels.ops import Int8Call
from nxdi.kernels.reference.int8 import INT8_LINEAR
from nxdi.kernels.registry import Kernel, register

INT8_C_SHIM = (
    "AOTITorchError aoti_torch_cpu_int8_linear(AtenTensorHandle x, AtenTensorHandle weight, "
    "AtenTensorHandle* result)"
)
_MAX_COLUMNS = 131072  # more could leave 32 bits


def load_int8_op() -> OpOverload:
    """`nxdi_cpu::int8_linear(x, weight)`.

    Shapes: x int8 [..., K] and weight int8 [N, K], rows contiguous -> int32 [..., N].
    Raises: UnsupportedError if it cannot be compiled or loaded here.
    """
    return load_op("int8_linear", _result_of)


def _result_of(x: Tensor, weight: Tensor) -> Tensor:
    """The result while tracing: its shape and dtype, no values."""
    if x.dtype != torch.int8 or weight.dtype != torch.int8:
        raise ShapeError(f"int8_linear: x is {x.dtype}, weight {weight.dtype}; they must be int8")
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"int8_linear: x is {tuple(x.shape)} and weight {tuple(weight.shape)}; "
            "x must be [..., K] for a weight of [N, K]"
        )
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=torch.int32)


def _run(x: Tensor, weight: Tensor, call: Int8Call) -> Tensor:
    y: Tensor = load_int8_op()(x.contiguous(), weight)
    return y


def _declines(call: Int8Call) -> str | None:
    if call.num_columns > _MAX_COLUMNS:
        return f"{call.num_columns} columns, more than {_MAX_COLUMNS}"
    return unsupported_reason()


INT8_KERNEL = "nxdi_cpu::int8_linear"
register(INT8_LINEAR, "cpu", Kernel(INT8_KERNEL, _run, _declines))

"""The weight-streaming linear op of linear.cpp, as a torch operator that can be exported.

op = load_linear_op()      # compiled on first use; UnsupportedError says why it cannot be
y = op(x, weight, bias)    # float32 x, weight of float32, bfloat16, float16 or int8
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._ops import OpOverload

from nxdi.errors import ShapeError
from nxdi.kernels.cpu.library import load_op

LINEAR_C_SHIM = (
    "AOTITorchError aoti_torch_cpu_linear(AtenTensorHandle x, AtenTensorHandle weight, "
    "AtenTensorHandle* bias, AtenTensorHandle* weight2, AtenTensorHandle* bias2, "
    "AtenTensorHandle* weight3, AtenTensorHandle* bias3, AtenTensorHandle* result)"
)
MAX_WEIGHTS = 3  # of one call


def load_linear_op() -> OpOverload:
    """`nxdi_cpu::linear(x, weight, bias=None, weight2=None, bias2=None, weight3=None, bias3=None)`.

    Shapes: x [..., K] float32, weight [N, K], bias [N] -> [..., N] float32; weight and bias are
            float32, bfloat16 or float16, weight also int8, and are never copied. Further weights
            [N2, K], [N3, K] of the same dtype add their outputs after those of the first:
            [..., N + N2 + N3].
    Raises: UnsupportedError if it cannot be compiled or loaded here.
    """
    return load_op("linear", _result_of)


def _result_of(x: Tensor, *operands: Tensor | None) -> Tensor:
    """The result while tracing: its shape and dtype, no values."""
    if x.dtype != torch.float32:
        raise ShapeError(f"linear: x is {x.dtype}; it must be float32, convert it with x.float()")
    size = 0
    for weight, bias in zip(operands[::2], [*operands[1::2], None], strict=False):
        if weight is not None:
            _check(x, weight, bias)
            size += weight.shape[0]
    return x.new_empty((*x.shape[:-1], size))


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
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

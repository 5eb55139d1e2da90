"""The linear op of int4.cpp for weights of four bits, as a candidate of the registry."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._ops import OpOverload

from nxdi.errors import ShapeError
from nxdi.kernels.cpu.library import load_op, unsupported_reason
from nxdi.kernels.ops import Int4Call
from nxdi.kernels.reference.int4 import INT4_LINEAR
from nxdi.kernels.registry import Kernel, register

INT4_C_SHIM = (
    "AOTITorchError aoti_torch_cpu_int4_linear(AtenTensorHandle x, AtenTensorHandle weight, "
    "AtenTensorHandle scale, AtenTensorHandle* weight2, AtenTensorHandle* scale2, "
    "AtenTensorHandle* weight3, AtenTensorHandle* scale3, AtenTensorHandle* result)"
)
GROUP_SIZES = (32, 128)


def load_int4_op() -> OpOverload:
    """`nxdi_cpu::int4_linear(x, weight, scale, weight2, scale2, weight3, scale3)`.

    Shapes: x [..., K] float32; weight uint8 and scale float32 as in the reference, with groups of
            GROUP_SIZES -> [..., N] float32. Further weights of as many columns add their outputs
            after those of the first: [..., N + N2 + N3].
    Raises: UnsupportedError if it cannot be compiled or loaded here.
    """
    return load_op("int4_linear", _result_of)


def _result_of(x: Tensor, *operands: Tensor | None) -> Tensor:
    """The result while tracing: its shape and dtype, no values."""
    if x.dtype != torch.float32 or x.dim() == 0:
        raise ShapeError(
            f"int4_linear: x is {x.dtype} {tuple(x.shape)}; it must be float32 [.., K]"
        )
    size = 0
    for weight, scale in zip(operands[::2], operands[1::2], strict=True):
        if weight is not None:
            _check(x, weight, scale)
            size += weight.shape[0]
    return x.new_empty((*x.shape[:-1], size))


def _check(x: Tensor, weight: Tensor, scale: Tensor | None) -> None:
    num_rows, num_columns = weight.shape[0], x.shape[-1]
    groups = {(num_rows, -(-num_columns // size)) for size in GROUP_SIZES}
    if (
        weight.shape != (num_rows, -(-num_columns // 2))
        or scale is None
        or scale.shape not in groups
    ):
        given = None if scale is None else tuple(scale.shape)
        raise ShapeError(
            f"int4_linear: x is {tuple(x.shape)}, weight {tuple(weight.shape)} and scale {given}; "
            "for x of [..., K] they must be [N, K / 2] and [N, K / 32] or [N, K / 128], rounded up"
        )


def _run(x: Tensor, weight: Tensor, scale: Tensor, call: Int4Call) -> Tensor:
    y: Tensor = load_int4_op()(x, weight, scale)
    return y


def _declines(call: Int4Call) -> str | None:
    if call.dtype != torch.float32:
        return f"activations are {call.dtype}, not float32"
    if call.group_size not in GROUP_SIZES:
        return f"a scale for each {call.group_size} columns, not for 32 or 128"
    return unsupported_reason()


INT4_KERNEL = "nxdi_cpu::int4_linear"
register(INT4_LINEAR, "cpu", Kernel(INT4_KERNEL, _run, _declines))

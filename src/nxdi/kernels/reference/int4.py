"""Weights of four bits, two in a byte, with a scale for each group of columns: what they mean.

Legend: N rows, K columns, of which each `group` in turn have one scale.
weight uint8 [N, K / 2 rounded up]: integers from -8 to 7 in two's complement, the first of two in
the lower half of a byte. scale float32 [N, K / group rounded up].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nxdi.kernels.ops import Int4Call
from nxdi.kernels.registry import Kernel, register


def nibbles(packed: Tensor, dim: int = -1) -> Tensor:
    """Bytes -> the numbers in their lower and upper four bits, int32, one after the other."""
    dim %= packed.dim()
    bits = packed.to(torch.int32)
    return torch.stack([bits & 15, bits >> 4], dim + 1).flatten(dim, dim + 1)


def unpack(packed: Tensor, dim: int = -1) -> Tensor:
    """Bytes [..., n] as the integers that they hold along `dim`, int32 [..., 2 * n]."""
    return (nibbles(packed, dim) ^ 8) - 8


def int4_linear(x: Tensor, weight: Tensor, scale: Tensor, call: Int4Call) -> Tensor:
    """x [..., K] @ (weight * scale).T -> [..., N] in the dtype of `x`."""
    num_columns = x.shape[-1]
    units = scale.repeat_interleave(call.group_size, -1)[:, :num_columns]
    return F.linear(x, (unpack(weight)[:, :num_columns] * units).to(x.dtype))


INT4_LINEAR = "int4 linear"
register(INT4_LINEAR, "generic", Kernel.reference("widened", int4_linear))

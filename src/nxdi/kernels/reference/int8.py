"""Products of 8-bit activations with 8-bit weights: exact integers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nxdi.kernels.ops import Int8Call
from nxdi.kernels.registry import Kernel, register

# So many products of two values up to 128 have a sum that float32 holds exactly.
_EXACT_COLUMNS = 2**24 // 128**2


def int8_linear(x: Tensor, weight: Tensor, call: Int8Call) -> Tensor:
    """x int8 [..., K] @ int8 weight [N, K].T -> int32 [..., N].

    By float32 products, which every backend has, of as many columns as leave them exact.
    """
    pieces = zip(x.split(_EXACT_COLUMNS, -1), weight.split(_EXACT_COLUMNS, -1), strict=True)
    sums = [F.linear(part.float(), columns.float()).to(torch.int32) for part, columns in pieces]
    return torch.stack(sums).sum(0, dtype=torch.int32)


INT8_LINEAR = "int8 x int8 linear"
register(INT8_LINEAR, "generic", Kernel.reference("float32 products", int8_linear))

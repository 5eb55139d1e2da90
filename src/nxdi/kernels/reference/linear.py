"""The linear projection: the meaning that every kernel for it must match."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias in the dtype of `x`; weights of another dtype are widened first.

    Shapes: x [..., K], weight [N, K], bias [N] -> [..., N].
    """
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

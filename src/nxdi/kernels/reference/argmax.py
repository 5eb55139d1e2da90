"""The most likely token in an operator that every backend computes well."""

from __future__ import annotations

import torch
from torch import Tensor

from nxdi.kernels.ops import ArgmaxCall
from nxdi.kernels.registry import Kernel, register


def argmax(logits: Tensor, call: ArgmaxCall) -> Tensor:
    """logits [B, V] -> int32 [B], the first on a tie."""
    return torch.argmax(logits, dim=-1).to(torch.int32)


ARGMAX = "argmax"
register(ARGMAX, "generic", Kernel.plain(argmax))

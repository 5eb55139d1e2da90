"""RMSNorm in operators that every backend computes well."""

from __future__ import annotations

import torch
from torch import Tensor

from nxdi.kernels.ops import NormCall
from nxdi.kernels.registry import Kernel, register


def rms_norm(x: Tensor, gain: Tensor, eps: float, call: NormCall) -> Tensor:
    """x [..., H] / rms(x) * gain float32 [H], in float32 whatever the dtype of x."""
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (gain * (wide * scale)).to(x.dtype)


RMS_NORM = "rmsnorm"
register(RMS_NORM, "generic", Kernel.plain(rms_norm))

"""Weights of 8 bits with one scale for the whole, or one for each row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nxdi.config.quantization import WeightQuantization
from nxdi.modules.quantization.clipping import least_squares


@dataclass(frozen=True)
class ScaledWeight:
    """weight = `layer.weight` * `layer.scale`.

    Shapes: weight [N, K]; scale float32 [N, 1], or [1, 1] for all rows. The product is scaled, not
    the weight, which is read in its 8 bits.
    """

    dtype: torch.dtype  # of what comes out

    def multiply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        weight, scale = _stored(layer)
        y = F.linear(x, weight.to(x.dtype)) * scale.view(-1).to(x.dtype)
        return y if bias is None else y + bias.to(x.dtype)

    def look_up(self, layer: nn.Module, ids: Tensor) -> Tensor:
        weight, scale = _stored(layer)
        rows = F.embedding(ids, weight).to(self.dtype)
        scales = scale if scale.shape[0] == 1 else F.embedding(ids, scale)
        return rows * scales.to(self.dtype)


def _stored(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return layer.weight, layer.scale  # type: ignore[return-value]  # parameters


def quantize(weight: Tensor, scheme: WeightQuantization) -> tuple[Tensor, Tensor]:
    """The weight of a checkpoint in 8 bits, and its scales; rounds to nearest, ties to even.

    Integers have the scales of least squared error, which may cut off the largest weights.
    Shapes: weight [N, K] -> [N, K], and float32 [N, 1] or [1, 1].
    """
    wide = weight.float()
    largest = wide.abs()
    largest = largest.amax(1, keepdim=True) if scheme.is_per_channel else largest.max().view(1, 1)
    # A row of zeros has no scale of its own; any gives zeros.
    scale = torch.where(largest > 0, largest / scheme.bound, torch.ones_like(largest))
    if scheme.dtype.is_floating_point:
        return (wide / scale).clamp(-scheme.bound, scheme.bound).to(scheme.dtype), scale
    if scheme.is_per_channel:
        scale = least_squares(wide, scale, scheme.bound)
    return (wide / scale).round().clamp(-scheme.bound, scheme.bound).to(scheme.dtype), scale


def dequantize(weight: Tensor, scale: Tensor) -> Tensor:
    """What a quantized weight stands for, in float32."""
    return weight.float() * scale

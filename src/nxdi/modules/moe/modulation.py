"""Where the weight of an expert is applied: to its result, or to its input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Late:
    """weight * expert(x).

    Shapes, in both methods: x and y [..., H]; weight and chosen (bool) broadcast to them. What is
    not chosen gives 0, whatever an expert has made of it.
    """

    def before(self, x: Tensor, weight: Tensor) -> Tensor:
        return x

    def after(self, y: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        return torch.where(chosen, y * weight.to(y.dtype), y.new_zeros(()))


@dataclass(frozen=True)
class Early(Late):
    """expert(weight * x), as in Llama 4."""

    def before(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * weight.to(x.dtype)

    def after(self, y: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        return torch.where(chosen, y, y.new_zeros(()))

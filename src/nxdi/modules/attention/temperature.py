"""Queries that grow with their place in the text, for attention without positions."""

from __future__ import annotations

import torch
from torch import Tensor


class TunedQueries:
    """Mixed into an attention without rotary embedding: queries grow with log(1 + position).

    floor_scale: tokens that have the same scale; attn_scale: multiplies the logarithm.
    Source: arXiv:2501.19399.
    """

    attn_scale: float
    floor_scale: int

    def apply_rotary_embedding(
        self,
        Q: Tensor,
        K: Tensor,
        V: Tensor,
        position_ids: Tensor,
        cos_cache: Tensor | None,
        sin_cache: Tensor | None,
        use_polar_compatible_rope: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        steps = (position_ids + 1) // self.floor_scale
        growth = 1 + self.attn_scale * torch.log1p(steps.float())
        return (Q * growth[:, None, :, None]).to(Q.dtype), K, cos_cache, sin_cache

"""Normalisation of queries and keys, as an object chosen once per model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nxdi.modules.norm import RMSNorm


class PerHeadQKNorm(nn.Module):
    """RMSNorm over each head of q and of k, before the rotary embedding.

    Shapes: q, k [B, N, S, D] -> same.  Source: arXiv:2302.05442, Qwen3.
    """

    def __init__(self, head_dim: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.q_norm = RMSNorm(head_dim, eps, dtype)
        self.k_norm = RMSNorm(head_dim, eps, dtype)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)

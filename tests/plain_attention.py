"""Attention by the textbook, one query at a time, in float64: what every other form must give."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax(scale * q k) v, one number after the other.

    Shapes: q [B, Nq, S, D]; k [B, Nkv, L, D]; v [B, Nkv, L, Dv]; allowed bool [B, S, L]; sinks
    [Nq] -> float64 [B, Nq, S, Dv]. Query head j attends with key head j // (Nq / Nkv). A sink is a
    logit without a value.
    """
    q, k, v = q.double(), k.double(), v.double()
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    group = q.shape[1] // k.shape[1]
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            keys, values = k[row, head // group], v[row, head // group]
            for place in range(q.shape[2]):
                seen = allowed[row, place].nonzero().flatten()
                scores = (keys[seen] @ q[row, head, place]) * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                weights = scores.exp()
                total = float(weights.sum())
                if sinks is not None:
                    total += math.exp(float(sinks[head]))
                out[row, head, place] = (weights / total) @ values[seen]
    return out


def allowed_pairs(
    query_positions: Tensor,
    key_positions: Tensor,
    window: int | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Which key each query may see, pair by pair. [B, S], [B, L] -> bool [B, S, L]."""
    batch, num_queries, num_keys = *query_positions.shape, key_positions.shape[1]
    allowed = torch.zeros(batch, num_queries, num_keys, dtype=torch.bool)
    for row in range(batch):
        for i, query in enumerate(query_positions[row].tolist()):
            for j, key in enumerate(key_positions[row].tolist()):
                is_near = window is None or query - key < window
                is_in_chunk = chunk_size is None or key // chunk_size == query // chunk_size
                allowed[row, i, j] = 0 <= key <= query and is_near and is_in_chunk
    return allowed

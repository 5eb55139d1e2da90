"""Attention over grouped heads: its explicit meaning, which every kernel for it must match.

Legend: B rows, N key/value heads on this rank, G query heads per key/value head, S queries, L keys,
D size of a key, Dv of a value. Every kernel takes q [B, N, G, S, D], k [B, N, L, D], v [B, N, L,
Dv], allowed [B, S, L] bool, sinks [N, G] or None and returns [B, N, G, S, Dv].

`attend_latent` is the same where keys come in two parts: a key is a value and R more numbers, and
neither is copied to join them. Its kernels take q [B, N, G, S, Dv] and q_rest [B, N, G, S, R],
rest [B, N, L, R], values [B, N, L, Dv], allowed; D is Dv + R.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nxdi.kernels.ops import AttendCall
from nxdi.kernels.registry import Kernel, register


def _probabilities(
    scores: Tensor,
    allowed: Tensor,
    sinks: Tensor | None,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """Masked softmax in float32. scores [B, N, G, S, L] -> same.

    A large negative number instead of -inf keeps rows of padding finite.
    """
    scores = scores.float() * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    lowest = scores.new_full((), torch.finfo(torch.float32).min)
    scores = torch.where(allowed[:, None, None], scores, lowest)
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    column = sinks.float()[None, :, :, None, None].expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)[..., :-1]


def attend_explicit(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, sinks: Tensor | None, call: AttendCall
) -> Tensor:
    """QK^T, mask, softmax, times V: the definition, in matmuls that every backend lowers well."""
    scores = q @ k.unsqueeze(2).transpose(-1, -2)
    probabilities = _probabilities(scores, allowed, sinks, call.scale, call.softcap)
    return probabilities.to(v.dtype) @ v.unsqueeze(2)


def attend_wide(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, sinks: Tensor | None, scale: float
) -> Tensor:
    """The same in float32 throughout, cast to the dtype of `q` at the end."""
    scores = q.float() @ k.float().unsqueeze(2).transpose(-1, -2)
    weights = _probabilities(scores, allowed, sinks, scale)
    return (weights @ v.float().unsqueeze(2)).to(q.dtype)


def attend_latent(
    q: Tensor, q_rest: Tensor, rest: Tensor, values: Tensor, allowed: Tensor, call: AttendCall
) -> Tensor:
    """The same with [values, rest] as keys."""
    shared = values.unsqueeze(2)
    scores = q @ shared.transpose(-1, -2) + q_rest @ rest.unsqueeze(2).transpose(-1, -2)
    return _probabilities(scores, allowed, None, call.scale, call.softcap).to(values.dtype) @ shared


register("attend", "generic", Kernel.reference("explicit", attend_explicit))
register("attend_latent", "generic", Kernel.reference("explicit", attend_latent))

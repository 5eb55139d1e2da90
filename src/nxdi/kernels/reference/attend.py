"""Attention over grouped heads: its explicit meaning, which every kernel for it must match.

Legend: B rows, N key/value heads on this rank, G query heads per key/value head, S queries, L keys,
D head size. Every kernel takes q [B, N, G, S, D], k and v [B, N, L, D], allowed [B, S, L] bool,
sinks [N, G] or None and returns [B, N, G, S, D].
"""

from __future__ import annotations

import torch
from torch import Tensor

from nxdi.kernels.ops import AttendCall
from nxdi.kernels.registry import Kernel, register


def _probabilities(
    scores: Tensor, allowed: Tensor, sinks: Tensor | None, call: AttendCall
) -> Tensor:
    """Masked softmax in float32. scores [B, N, G, S, L] -> same.

    A large negative number instead of -inf keeps rows of padding finite.
    """
    scores = scores.float() * call.scale
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
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
    probabilities = _probabilities(q @ k.unsqueeze(2).transpose(-1, -2), allowed, sinks, call)
    return probabilities.to(v.dtype) @ v.unsqueeze(2)


def _never(call: AttendCall) -> str | None:
    return None


register("attend", "generic", Kernel("explicit", attend_explicit, _never, True))

"""Attention over grouped heads: the explicit meaning, and the forms that suit a CPU.

Legend: B rows, N key/value heads on this rank, G query heads per key/value head, S queries, L keys,
D head size. All forms take q [B, N, G, S, D], k and v [B, N, L, D], allowed [B, S, L] bool, sinks
[N, G] or None and return [B, N, G, S, D].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nxdi.kernels.masks import Causal
from nxdi.kernels.ops import AttendCall
from nxdi.kernels.registry import Kernel, register

# Short enough that one fused multiply-and-sum loop beats a call to a flash kernel (measured on
# AVX2).
_FUSED_DECODE_MAX_KEYS = 256


def _probabilities(
    scores: Tensor, allowed: Tensor, sinks: Tensor | None, call: AttendCall
) -> Tensor:
    """Masked softmax in float32. scores [B, N, G, S, L] -> same.

    A large negative number instead of -inf keeps rows of padding finite.
    """
    scores = scores.float() * call.scale
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    lowest = torch.full((), torch.finfo(torch.float32).min, dtype=torch.float32)
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


def attend_fused_decode(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, sinks: Tensor | None, call: AttendCall
) -> Tensor:
    """One query against a short cache as multiply-and-sum, which a compiler fuses into one pass."""
    scores = (q * k.unsqueeze(2)).sum(dim=-1).unsqueeze(-2)
    probabilities = _probabilities(scores, allowed, sinks, call)
    return (probabilities.squeeze(-2).unsqueeze(-1) * v.unsqueeze(2)).sum(dim=-2, keepdim=True)


def attend_sdpa(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, sinks: Tensor | None, call: AttendCall
) -> Tensor:
    """torch's fused attention.

    One query per row: the group is the query dimension, so K and V are not repeated.
    """
    if call.num_queries == 1:
        bias = allowed.unsqueeze(1)
        out = F.scaled_dot_product_attention(q.squeeze(3), k, v, attn_mask=bias, scale=call.scale)
        return out.unsqueeze(3)
    flat_q = q.flatten(1, 2)
    flat_k, flat_v = (
        t.unsqueeze(2).expand(q.shape[:3] + t.shape[2:]).flatten(1, 2) for t in (k, v)
    )
    if call.aligned and call.mask == Causal():
        out = F.scaled_dot_product_attention(
            flat_q, flat_k, flat_v, is_causal=True, scale=call.scale
        )
    else:
        out = F.scaled_dot_product_attention(
            flat_q, flat_k, flat_v, attn_mask=allowed.unsqueeze(1), scale=call.scale
        )
    return out.view_as(q)


def _never(call: AttendCall) -> str | None:
    return None


def _declines_fused_decode(call: AttendCall) -> str | None:
    if call.num_queries != 1:
        return f"{call.num_queries} queries per row, not 1"
    if call.num_keys > _FUSED_DECODE_MAX_KEYS:
        return f"{call.num_keys} keys are more than {_FUSED_DECODE_MAX_KEYS}"
    return None


def _declines_sdpa(call: AttendCall) -> str | None:
    if call.has_sinks:
        return "attention sinks"
    return "soft-capped scores" if call.softcap is not None else None


register("attend", "generic", Kernel("explicit", attend_explicit, _never))
register("attend", "cpu", Kernel("fused_decode", attend_fused_decode, _declines_fused_decode))
register("attend", "cpu", Kernel("sdpa", attend_sdpa, _declines_sdpa))

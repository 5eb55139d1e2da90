"""What computes attention on a Neuron device; shapes are those of the reference.

Keys and values come as a step reads them from its cache. A paged cache is gathered before, so the
form of the decode kernel that reads blocks is not chosen here, nor the one that reads float8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nxdi.kernels import nki
from nxdi.kernels.masks import SlidingWindow
from nxdi.kernels.neuron.op import load_op, nki_kernel
from nxdi.kernels.ops import AttendCall
from nxdi.kernels.registry import register

_MAX_STEP = 16  # tokens of a row in a step that decodes or verifies; pieces of prompts have more


def attend_prefill(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, sinks: Tensor | None, call: AttendCall
) -> Tensor:
    """Tokens of a prompt to themselves. The mask follows from their order."""
    window = call.mask.window if isinstance(call.mask, SlidingWindow) else 0
    out: Tensor = load_op("attention_prefill")(
        q, k.to(q.dtype), v.to(q.dtype), sinks, call.scale, window
    )
    return out


def attend_decode(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, sinks: Tensor | None, call: AttendCall
) -> Tensor:
    """A few tokens of each row to its cache, under any mask."""
    out: Tensor = load_op("attention_decode")(
        q,
        k.to(q.dtype),
        v.to(q.dtype),
        allowed.to(torch.uint8),
        sinks=sinks,
        scale=call.scale,
    )
    return out


def _declines_prefill(call: AttendCall) -> str | None:
    reason: str | None = nki.load_kernels("attention_prefill").supports(call)
    return reason


def _declines_decode(call: AttendCall) -> str | None:
    if not _is_decode(call):
        return f"{call.num_queries} queries per row of a prompt, not up to {_MAX_STEP} of a step"
    module = nki.load_kernels("attention_decode")
    reason: str | None = module.supports(module.Call(call, call.dtype))
    return reason


def _is_decode(call: AttendCall) -> bool:
    return not call.aligned and call.num_queries <= _MAX_STEP


register(
    "attend",
    "neuron",
    nki_kernel(
        "attention_prefill",
        attend_prefill,
        _declines_prefill,
        options=("attn_kernel_enabled",),
        meant_for=lambda call: call.aligned,
    ),
)
register(
    "attend",
    "neuron",
    nki_kernel(
        "attention_decode",
        attend_decode,
        _declines_decode,
        options=("attn_tkg_nki_kernel_enabled", "attn_block_tkg_nki_kernel_enabled"),
        meant_for=_is_decode,
    ),
)

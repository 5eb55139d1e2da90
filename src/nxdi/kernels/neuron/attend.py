"""What computes attention on a Neuron device; shapes are those of the reference.

"attend" is given keys and values as they are. "attend_stored" has a cache of blocks or of float8 as
well, which the decode kernel reads in place: nothing is gathered or widened in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nxdi import env
from nxdi.kernels import nki
from nxdi.kernels.masks import SlidingWindow
from nxdi.kernels.neuron import nkilib as _nkilib  # noqa: F401  registers what is asked first
from nxdi.kernels.neuron.op import load_op, nki_kernel
from nxdi.kernels.ops import AttendCall, StoredAttendCall
from nxdi.kernels.registry import register
from nxdi.kernels.sim.machine import ALIASES

_DECODE_OPTIONS = ("attn_tkg_nki_kernel_enabled", "attn_block_tkg_nki_kernel_enabled")
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


def attend_stored(
    q: Tensor, attended: Any, allowed: Tensor, sinks: Tensor | None, call: StoredAttendCall
) -> Tensor:
    """A few tokens of each row to its cache as it is stored."""
    k, v, blocks, scales = attended.stored
    out: Tensor = load_op("attention_decode")(
        q, k, v, allowed.to(torch.uint8), blocks, sinks, scales, call.attend.scale
    )
    return out


def _declines_prefill(call: AttendCall) -> str | None:
    reason: str | None = nki.load_kernels("attention_prefill").supports(call)
    return reason


def _declines_decode(call: AttendCall) -> str | None:
    return _declines_stored(StoredAttendCall(call, call.dtype, 0))


def _declines_stored(call: StoredAttendCall) -> str | None:
    if not _is_decode(call.attend):
        queries = call.attend.num_queries
        return f"{queries} queries per row of a prompt, not up to {_MAX_STEP} of a step"
    module = nki.load_kernels("attention_decode")
    # A compile names its target in the environment.
    generation = 2 if ALIASES.get(env.neuron_target() or "") == "gen2" else 3
    found = module.Call(call.attend, call.kv_dtype, call.block_size, generation)
    reason: str | None = module.supports(found)
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
        options=_DECODE_OPTIONS,
        meant_for=_is_decode,
    ),
)
register(
    "attend_stored",
    "neuron",
    nki_kernel(
        "attention_decode",
        attend_stored,
        _declines_stored,
        options=_DECODE_OPTIONS,
        meant_for=lambda call: _is_decode(call.attend),
    ),
)

"""Attention of prompts by the kernel of aws-neuron/nki-library, where it is what is known of it.

Neuron's compiler brings the library, validated for itself, so it is asked before our kernel. Its
signatures change with releases: the kernel is called by keyword only, after a look at what it
takes. Of its conventions those are used that are published: heads folded into the batch, tokens
before elements. Nothing here has run with the library.
"""

from __future__ import annotations

import inspect
from functools import cache
from importlib import import_module

import torch
from torch import Tensor
from torch._ops import OpOverload

from nxdi.kernels import nki
from nxdi.kernels.masks import Causal
from nxdi.kernels.neuron.op import missing_compiler
from nxdi.kernels.ops import AttendCall
from nxdi.kernels.registry import Kernel, register

NAME = "nxdi_nkilib::attention_cte"
_MODULE, _FUNCTION = "nkilib.core.attention.attention_cte", "attention_cte"
_KEYWORDS = ("q", "k", "v", "scale", "causal_mask", "tp_q", "tp_k", "tp_out")
_SECTION = 512  # of which the tokens of a prompt are a multiple
_DTYPES = (torch.bfloat16, torch.float16)


def attend_prefill(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, sinks: Tensor | None, call: AttendCall
) -> Tensor:
    """Tokens of a prompt to themselves. The mask follows from their order."""
    out: Tensor = _load_op()(q, k.to(q.dtype), v.to(q.dtype), call.scale)
    return out


def _reference(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """As our kernel's: q [B, N, G, S, D], k and v [B, N, S, D] -> as q."""
    out: Tensor = nki.load_kernels("attention_prefill").reference(q, k, v, scale=scale)
    return out


def _run(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    kernel = getattr(import_module(_MODULE), _FUNCTION)
    folded = {"q": q.flatten(0, 2), "k": k.flatten(0, 1), "v": v.flatten(0, 1)}
    layout = {"tp_q": True, "tp_k": True, "tp_out": False}
    out: Tensor = kernel(**folded, scale=scale, causal_mask=True, **layout)
    return out.view(q.shape)


@cache
def _load_op() -> OpOverload:
    """The operator, which our reference computes on a CPU and the library on a device."""
    made = torch.library.custom_op(NAME, _reference, mutates_args=())
    made.register_fake(_reference)
    if nki.has_compiler():
        made.register_kernel("xla", _run)
    op: OpOverload = torch.ops.nxdi_nkilib.attention_cte.default
    return op


def _declines(call: AttendCall) -> str | None:
    return missing_compiler() or mismatch() or _limit(call)


def mismatch() -> str | None:
    """Why the library's kernel cannot be called here, or None."""
    try:
        kernel = getattr(import_module(_MODULE), _FUNCTION)
        parameters = inspect.signature(kernel).parameters
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        return f"{_MODULE} has no {_FUNCTION} to call: {error}"
    unknown = [name for name in _KEYWORDS if name not in parameters]
    if unknown:
        return f"{_FUNCTION} of this nkilib takes no {', '.join(unknown)}"
    missing = [
        name
        for name, parameter in parameters.items()
        if name not in _KEYWORDS and parameter.default is inspect.Parameter.empty
    ]
    return f"{_FUNCTION} of this nkilib asks for {', '.join(missing)}" if missing else None


def _limit(call: AttendCall) -> str | None:
    """Why the kernel, as far as it is published, cannot serve a call, or None."""
    if not call.aligned or call.num_queries != call.num_keys or call.num_keys % _SECTION:
        return f"{call.num_queries} queries and {call.num_keys} keys, no prompt in {_SECTION}s"
    if not isinstance(call.mask, Causal) or call.softcap is not None or call.has_sinks:
        return "more than a causal mask"
    if call.head_dim > 128 or call.head_dim != call.value_dim:
        return f"keys of {call.head_dim} and values of {call.value_dim}, not one size <= 128"
    return None if call.dtype in _DTYPES else f"dtype {call.dtype} is no float of 16 bits"


# Our own kernel is what the option asks for; this one may serve as well, unless it is forbidden.
register(
    "attend",
    "neuron",
    Kernel(
        NAME,
        attend_prefill,
        _declines,
        options=("attn_kernel_enabled",),
        meant_for=lambda call: False,
    ),
)

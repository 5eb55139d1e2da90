"""What turns queries and keys by their positions on a Neuron device."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nxdi.kernels import nki
from nxdi.kernels.neuron.op import load_op, nki_kernel
from nxdi.kernels.ops import RopeCall
from nxdi.kernels.registry import register


def _run(
    rotate: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, call: RopeCall
) -> tuple[Tensor, ...]:
    # The kernel wants a token's heads side by side, as they are projected.
    heads = [x.transpose(1, 2).flatten(0, 1) for x in (q, k)]
    turned = load_op("rope")(*heads, cos.flatten(0, 1), sin.flatten(0, 1))
    batch, _, length, _ = q.shape
    return tuple(x.unflatten(0, (batch, length)).transpose(1, 2) for x in turned)


def _declines(call: RopeCall) -> str | None:
    if call.peculiarity is not None:
        return call.peculiarity
    module, tokens = nki.load_kernels("rope"), call.num_tokens
    shapes = (
        (tokens, call.num_heads, call.head_dim),
        (tokens, call.num_key_value_heads, call.head_dim),
        (tokens, call.dim),
    )
    reason: str | None = module.supports(module.Call(*shapes, call.dtype))
    return reason


register("rope", "neuron", nki_kernel("rope", _run, _declines))

"""The two ways a decoder layer is called: ours, and that of layers written for NxDI."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nxdi.errors import ConfigError, UnsupportedError
from nxdi.kernels.masks import Causal
from nxdi.modules.context import LayerContext
from nxdi.modules.kvcache import KVCacheLayout, layout_of
from nxdi.types import Phase

LayerForm = Callable[[nn.Module, Tensor, LayerContext], Tensor]


def layer_form(layer: nn.Module) -> LayerForm:
    """How `layer` wants to be called, from the parameters of its forward.

    Raises: ConfigError if it requires an argument that neither form has.
    """
    parameters = inspect.signature(layer.forward).parameters
    if "ctx" in parameters:
        return call_with_context
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    form = NxdiForm(None if takes_any else frozenset(parameters))
    form.check(layer, [p for p in list(parameters.values())[1:] if p.default is p.empty])
    return form


def call_with_context(layer: nn.Module, x: Tensor, ctx: LayerContext) -> Tensor:
    """layer(x, ctx=ctx) -> x."""
    out: Tensor = layer(x, ctx=ctx)
    return out


@dataclass(frozen=True)
class NxdiForm:
    """NxDI's keywords in, a tuple out whose first element is the hidden states.

    Every layer is called without the angles of an earlier one: handed on, they would be wrong for
    layers with another rotary embedding, and each computes its own when they are None.
    `accepted`: the keywords that the layer takes; None: all.
    """

    accepted: frozenset[str] | None

    def __call__(self, layer: nn.Module, x: Tensor, ctx: LayerContext) -> Tensor:
        keywords = nxdi_keywords(ctx, layout_of(layer))
        if self.accepted is not None:
            keywords = {name: keywords[name] for name in keywords.keys() & self.accepted}
        result = layer(x, **keywords)
        if isinstance(result, Tensor):
            return result
        hidden_states, *rest = result
        if len(rest) > 3 and rest[3] is not None:
            raise UnsupportedError(
                f"{type(layer).__name__} returned a residual to add in the next layer; add it "
                "before returning, and return None in its place"
            )
        out: Tensor = hidden_states
        return out

    def check(self, layer: nn.Module, required: list[inspect.Parameter]) -> None:
        unknown = [
            p.name
            for p in required
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in _NAMES
        ]
        if unknown:
            raise ConfigError(
                f"{type(layer).__name__}.forward requires {', '.join(unknown)}, which no decoder "
                "layer is given; take (hidden_states, attention_mask, position_ids, **kwargs), or "
                "(x, *, ctx)"
            )


def nxdi_keywords(ctx: LayerContext, layout: KVCacheLayout) -> dict[str, Any]:
    """What NxDI gives a layer, as far as it means something here.

    layout: of the layer's cache. Shapes: attention_mask bool [B, 1, S, L], True = may be seen;
    position_ids [B, S], 0 for padding; past_key_value: in decode this layer's keys and values
    [B, N, L, D] before the step.
    """
    is_prefill = ctx.phase is Phase.PREFILL
    return {
        "seq_ids": ctx.step.seq_ids,
        "attention_mask": ctx.allowed_from_start(Causal()).unsqueeze(1),
        "position_ids": ctx.token_places.clamp(min=0),
        "past_key_value": None if is_prefill else ctx.past(layout),
        "is_for_context_encoding": is_prefill,
        "seq_len": ctx.step.num_slots,
        **dict.fromkeys(_EMPTY),
        **dict.fromkeys(("get_kv_per_layer", "update_kv_per_layer"), False),
        "windowed_context_encoding_window_idx": -1,
    }


_EMPTY = (
    "active_mask",
    "adapter_ids",
    "cos_cache",
    "sin_cache",
    "rotary_position_ids",
    "kv_mgr",
    "residual",
    "local_mask",
    "padding_mask",
)
_NAMES = frozenset(
    (
        "seq_ids",
        "attention_mask",
        "position_ids",
        "past_key_value",
        "is_for_context_encoding",
        "seq_len",
        *_EMPTY,
        "get_kv_per_layer",
        "update_kv_per_layer",
        "windowed_context_encoding_window_idx",
    )
)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nxdi.errors import ConfigError, UnsupportedError
from nxdi.models.layer_call import call_with_context, layer_form, nxdi_keywords
from nxdi.modules.context import LayerContext
from nxdi.modules.kvcache import ContiguousCache
from nxdi.types import Phase
from tiny_modules import drawn, empty_cache, layer_context

LAYOUT = ContiguousCache(num_kv_heads=2, max_len=8, head_dims=(4, 4))
X = torch.ones(2, 3, 4)


def context(phase: Phase = Phase.PREFILL) -> LayerContext:
    """Prefill: a full row, and one with padding. Decode: rows at positions 2 and 1."""
    cache = type(empty_cache(LAYOUT, 3))(*(drawn(3, 2, 9, 4, seed=seed) for seed in (1, 2)))
    rows = {Phase.DECODE: [[2], [1]], Phase.EXTEND: [[2, 3], [1, -1]]}
    places = rows.get(phase, [[0, 1, 2], [0, 1, -1]])
    return layer_context(phase, torch.tensor(places), cache, num_slots=4)


def layer(forward: Callable[..., Any]) -> nn.Module:
    """A layer with this forward, and a cache."""
    made = nn.Module()
    made.cache_layout = LAYOUT  # type: ignore[assignment]  # attributes of modules have no types
    made.forward = forward  # type: ignore[method-assign]  # as a method of its class
    return made


def call(forward: Callable[..., Any], ctx: LayerContext | None = None) -> Tensor:
    made = layer(forward)
    return layer_form(made)(made, X, ctx or context())


def test_a_layer_of_ours_gets_the_context() -> None:
    seen: list[LayerContext] = []

    def forward(x: Tensor, *, ctx: LayerContext) -> Tensor:
        seen.append(ctx)
        return x + 1

    made, ctx = layer(forward), context()
    assert layer_form(made) is call_with_context
    assert torch.equal(layer_form(made)(made, X, ctx), X + 1)
    assert seen == [ctx]


@pytest.mark.parametrize("phase", list(Phase))
def test_a_layer_that_takes_everything_gets_all_of_nxdis_keywords(phase: Phase) -> None:
    seen: dict[str, Any] = {}

    def forward(hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        seen.update(kwargs, attention_mask=attention_mask)
        return hidden_states + 1, None, None, None, None

    ctx = context(phase)
    assert torch.equal(call(forward, ctx), X + 1)
    assert seen.keys() == nxdi_keywords(ctx, LAYOUT).keys()
    assert seen["is_for_context_encoding"] is (phase is Phase.PREFILL)


def test_a_layer_gets_only_what_it_takes() -> None:
    def forward(hidden_states: Tensor, position_ids: Tensor, kv_mgr: object = 5) -> Tensor:
        assert position_ids.tolist() == [[0, 1, 2], [0, 1, 0]]
        assert kv_mgr is None
        return hidden_states

    assert torch.equal(call(forward), X)


@pytest.mark.parametrize(
    "result", [lambda x: x, lambda x: (x,), lambda x: (x, 1), lambda x: (x, 1, 2, 3, None)]
)
def test_what_a_layer_may_return(result: Callable[[Tensor], Any]) -> None:
    assert torch.equal(call(lambda x, **kwargs: result(x)), X)


def test_a_residual_for_the_next_layer_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="add it before returning, and return None"):
        call(lambda x, **kwargs: (x, None, None, None, x))


def test_an_argument_that_nobody_gives() -> None:
    def forward(x: Tensor, rotary: Tensor, alibi: Tensor, position_ids: Tensor) -> Tensor:
        return x

    with pytest.raises(ConfigError, match=r"Module\.forward requires rotary, alibi, which no dec"):
        layer_form(layer(forward))


def test_prefill_keywords() -> None:
    known = nxdi_keywords(context(), LAYOUT)
    assert known["attention_mask"].shape == (2, 1, 3, 3)
    assert known["attention_mask"][0, 0].tolist() == torch.ones(3, 3).tril().bool().tolist()
    assert known["position_ids"].tolist() == [[0, 1, 2], [0, 1, 0]]
    assert known["past_key_value"] is None
    assert known["seq_len"] == 4
    assert known["seq_ids"].tolist() == [0, 1]


def test_decode_keywords() -> None:
    ctx = context(Phase.DECODE)
    known = nxdi_keywords(ctx, LAYOUT)
    assert known["attention_mask"][:, 0, 0].int().tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    past = known["past_key_value"]
    assert [tensor.shape for tensor in past] == [(2, 2, 4, 4)] * 2
    assert torch.equal(past[1], ctx.step.caches[0].v[:2, :, :4])

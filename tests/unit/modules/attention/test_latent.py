"""Latent attention is what the paper says, in either form, over ranks, in the smallest cache."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from nxdi.errors import ConfigError
from nxdi.kernels.masks import Causal
from nxdi.modules.attention.attend import Attend
from nxdi.modules.attention.latent import (
    Absorbed,
    Expanded,
    LatentAttention,
    LatentSizes,
    choose_form,
)
from nxdi.modules.kvcache import ContiguousCache, PagedCache
from nxdi.modules.kvcache.codec import Float8KV
from nxdi.modules.rope import InterleavedRotaryEmbedding, RotaryEmbedding
from nxdi.parallel_layers.groups import SimulatedWorld
from nxdi.types import Phase
from plain_attention import allowed_pairs, plain_attention
from tiny_modules import (
    drawn,
    empty_cache,
    filled,
    full_weights,
    layer_context,
    rank_modules,
    tiny_config,
)
from tolerances import ATTENTION_FP32

HIDDEN, LENGTH, ROPE = 16, 6, 4
SIZES = LatentSizes(
    num_attention_heads=3,
    q_lora_rank=10,
    kv_lora_rank=7,
    qk_nope_head_dim=6,
    qk_rope_head_dim=ROPE,
    v_head_dim=5,
)
NO_Q_LATENT = dataclasses.replace(SIZES, q_lora_rank=None)
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, -1, -1]], dtype=torch.int32)


def make(
    sizes: LatentSizes = SIZES,
    phase: Phase = Phase.PREFILL,
    is_interleaved: bool = True,
    neuron: dict[str, Any] | None = None,
    **options: Any,
) -> LatentAttention:
    config = tiny_config(**(neuron or {}))
    config.neuron_config = config.neuron_config.for_phase(phase, "eager")
    rotary = InterleavedRotaryEmbedding if is_interleaved else RotaryEmbedding
    return LatentAttention(config, sizes, rotary(ROPE), **options)


def prefill(attention: LatentAttention, x: Tensor) -> Tensor:
    cache = empty_cache(attention.cache_layout, num_rows=2)
    ctx = layer_context(Phase.PREFILL, POSITIONS, cache, num_slots=16)
    return attention(x, ctx=ctx).hidden_states


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight


def turned(x: Tensor, is_interleaved: bool) -> Tensor:
    """Pairs as complex numbers, by their positions 0, 1, ... [B, S, N, ROPE]."""
    speed = torch.tensor([10000.0 ** (-2 * j / ROPE) for j in range(ROPE // 2)]).double()
    angle = torch.arange(x.shape[1]).double()[None, :, None, None] * speed
    pairs = x.unflatten(-1, (-1, 2)) if is_interleaved else x.unflatten(-1, (2, -1)).mT
    moved = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(moved).flatten(-2)


def plain(
    weights: dict[str, Tensor], x: Tensor, sizes: LatentSizes, is_interleaved: bool, scale: float
) -> Tensor:
    """Section 2.1 of arXiv:2405.04434, head by head in float64, with every key and value made."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    x, rank, nope = x.double(), sizes.kv_lora_rank, sizes.qk_nope_head_dim

    def project(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))

    hidden = x
    if sizes.q_lora_rank is not None:
        hidden = normed(project("q_a_proj", x), w["q_a_layernorm.weight"])
    q = project("q_b_proj", hidden).unflatten(-1, (sizes.num_attention_heads, -1))
    both = project("kv_a_proj_with_mqa", x)
    latent = normed(both[..., :rank], w["kv_a_layernorm.weight"])
    made = project("kv_b_proj", latent).unflatten(-1, (sizes.num_attention_heads, -1))
    shared = turned(both[..., None, rank:], is_interleaved).expand(-1, -1, q.shape[2], -1)
    k = torch.cat([made[..., :nope], shared], dim=-1)
    q = torch.cat([q[..., :nope], turned(q[..., nope:], is_interleaved)], dim=-1)
    allowed = allowed_pairs(POSITIONS, POSITIONS)
    out = plain_attention(
        *(t.transpose(1, 2) for t in (q, k, made[..., nope:])), allowed=allowed, scale=scale
    )
    return project("o_proj", out.transpose(1, 2).flatten(2))


def close(got: Tensor, expected: Tensor) -> None:
    """Equal where there are tokens."""
    for row, length in enumerate([6, 4]):
        torch.testing.assert_close(
            got[row, :length].double(),
            expected[row, :length].double(),
            rtol=ATTENTION_FP32,
            atol=ATTENTION_FP32,
        )


@pytest.mark.parametrize(
    ("sizes", "is_interleaved", "options"),
    [
        (SIZES, True, {}),
        (NO_Q_LATENT, True, {}),
        (SIZES, False, {"bias": True, "scale": 0.7}),
        (dataclasses.replace(SIZES, v_head_dim=6), True, {}),
        (dataclasses.replace(SIZES, v_head_dim=17), True, {}),
    ],
)
def test_it_is_what_the_paper_says(
    sizes: LatentSizes, is_interleaved: bool, options: dict[str, Any]
) -> None:
    attention = filled(lambda: make(sizes, is_interleaved=is_interleaved, **options))
    x = drawn(2, LENGTH, HIDDEN)
    weights = dict(attention.state_dict())
    scale = options.get("scale", (6 + ROPE) ** -0.5)
    close(prefill(attention, x), plain(weights, x, sizes, is_interleaved, scale))


@pytest.mark.parametrize("sizes", [SIZES, NO_Q_LATENT])
@pytest.mark.parametrize(
    "neuron", [{}, {"is_block_kv_layout": True, "pa_block_size": 3, "pa_num_blocks": 12}]
)
def test_decode_goes_on_where_a_prefill_ends(sizes: LatentSizes, neuron: dict[str, Any]) -> None:
    """Phase by phase with the form of each, and all of it in one prefill."""
    x = drawn(2, LENGTH, HIDDEN)
    modules = {
        phase: filled(lambda p=phase: make(sizes, p, neuron=neuron))  # type: ignore[misc]
        for phase in Phase
    }
    cache = empty_cache(modules[Phase.DECODE].cache_layout, num_rows=2)
    cache = type(cache)(*(t.nan_to_num(9.0) for t in cache))
    blocks = torch.tensor([[7, 2, 9], [0, 5, 1]], dtype=torch.int32) if neuron else None
    parts = []
    for phase, start, end in (
        *((Phase.PREFILL, 0, 2), (Phase.EXTEND, 2, 4)),
        *((Phase.DECODE, 4, 5), (Phase.DECODE, 5, 6)),
    ):
        where = torch.arange(start, end, dtype=torch.int32).expand(2, -1)
        ctx = layer_context(phase, where, cache, num_slots=8)
        ctx.step.blocks = blocks
        parts.append(modules[phase](x[:, start:end], ctx=ctx).hidden_states)
        cache = ctx.step.caches[0]
    close(torch.cat(parts, dim=1), prefill(filled(lambda: make(sizes)), x))


def test_both_forms_give_the_same() -> None:
    attention = filled(make)
    x = drawn(2, LENGTH, HIDDEN)
    expanded = prefill(attention, x)
    attention.form = Absorbed(attention.form.attend)  # type: ignore[attr-defined]
    close(prefill(attention, x), expanded)


def test_only_a_prefill_expands() -> None:
    attend = Attend(Causal(), 1.0)
    assert choose_form(Phase.PREFILL, attend) == Expanded(attend)
    assert {type(choose_form(phase, attend)) for phase in (Phase.DECODE, Phase.EXTEND)} == {
        Absorbed
    }


@pytest.mark.parametrize("tp", [2, 4])
def test_heads_are_spread_over_ranks_and_the_cache_is_not(tp: int) -> None:
    """Three heads: some ranks have one of zeros."""
    weights = full_weights(make)
    x = drawn(2, LENGTH, HIDDEN)
    alone = rank_modules(make, 1, weights)[0]
    ranks = rank_modules(make, tp, weights)
    expected = prefill(alone, x)
    for got in SimulatedWorld(tp).run([lambda m=m: prefill(m, x) for m in ranks]):
        close(got, expected)
    assert {rank.num_heads for rank in ranks} == {-(-3 // tp)}
    assert all(rank.cache_layout == alone.cache_layout for rank in ranks)


def test_the_cache_holds_one_latent_and_one_key_per_token() -> None:
    assert make().cache_layout == ContiguousCache(1, 16, (ROPE, 7))
    assert make().cache_layout.shapes(5) == [(5, 1, 17, ROPE), (5, 1, 17, 7)]
    paged = make(neuron={"is_block_kv_layout": True, "pa_block_size": 4})
    assert paged.cache_layout == PagedCache(1, 4, 4, (ROPE, 7))


def test_what_is_stored_is_the_normed_latent_and_the_turned_key() -> None:
    attention = filled(make)
    x = drawn(2, LENGTH, HIDDEN)
    ctx = layer_context(Phase.PREFILL, POSITIONS, empty_cache(attention.cache_layout, 2), 16)
    attention(x, ctx=ctx)
    keys, latents = ctx.step.caches[0]
    both = (x @ attention.kv_a_proj_with_mqa.weight.T).double()
    expected = normed(both[..., :7], attention.kv_a_layernorm.weight.double())
    close(latents[:, 0, :LENGTH], expected)
    close(keys[:, 0, :LENGTH], turned(both[..., None, 7:], True).squeeze(2))


@pytest.mark.parametrize("name", ["k_scales", "v_scales"])
def test_a_float8_cache_has_scales_of_both_sizes(name: str) -> None:
    config = {
        "direct_cast": False,
        "k_quant_method": "per_channel_symmetric",
        "v_quant_method": "per_channel_symmetric",
    }
    attention = make(neuron={"kv_cache_quant": True, "kv_quant_config": config})
    assert isinstance(attention.kv_codec, Float8KV)
    size = ROPE if name == "k_scales" else 7
    assert attention.state_dict()[f"kv_codec.{name}"].shape == (1, 1, size)
    state = {f"a.{name}": torch.ones(1, 1, size)}
    attention.preshard_hook(state, "a.weight")
    assert list(state) == [f"a.kv_codec.{name}"]


def test_a_cache_by_head_has_the_scale_of_one_head_on_every_rank() -> None:
    config = {"direct_cast": False, "k_quant_method": "per_head_symmetric"}
    options = {"kv_cache_quant": True, "kv_quant_config": config}

    def scaled() -> LatentAttention:
        return make(neuron=options)

    weights = {**full_weights(scaled), "kv_codec.k_scales": torch.full((1, 1, 1), 2.5)}
    for rank in rank_modules(scaled, 2, weights):
        assert rank.state_dict()["kv_codec.k_scales"].tolist() == [[[2.5]]]


def test_queries_without_a_latent_are_named_as_such_in_a_checkpoint() -> None:
    state = {"a.q_proj.weight": torch.ones(1)}
    make(NO_Q_LATENT).preshard_hook(state, "a.weight")
    assert list(state) == ["a.q_b_proj.weight"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("q_lora_rank", 0), ("kv_lora_rank", 0), ("v_head_dim", None), ("qk_nope_head_dim", -1)],
)
def test_sizes_that_make_no_sense(name: str, value: int | None) -> None:
    with pytest.raises(ConfigError, match=f"{name}={value} must be at least 1"):
        dataclasses.replace(SIZES, **{name: value})

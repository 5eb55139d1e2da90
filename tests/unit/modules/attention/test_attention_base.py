from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nxdi.errors import ConfigError
from nxdi.kernels.masks import Causal, Chunked, SlidingWindow
from nxdi.modules.attention import AttentionOutput, NeuronAttentionBase
from nxdi.modules.context import running
from nxdi.modules.kvcache import ChunkedCache, ContiguousCache, PagedCache, WindowCache
from nxdi.modules.norm import RMSNorm
from nxdi.modules.rope import RotaryEmbedding
from nxdi.parallel_layers.groups import SimulatedWorld
from nxdi.parallel_layers.parallel_state import tensor_parallel
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

HIDDEN, HEAD_DIM, LENGTH = 16, 4, 6


def make(num_q: int = 4, num_kv: int = 2, **options: Any) -> NeuronAttentionBase:
    config = tiny_config(**options.pop("neuron", {}))
    return NeuronAttentionBase(
        config,
        hidden_size=HIDDEN,
        num_attention_heads=num_q,
        num_key_value_heads=num_kv,
        head_dim=HEAD_DIM,
        **options,
    )


def positions() -> Tensor:
    """A full row, and one with two places of padding."""
    return torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, -1, -1]], dtype=torch.int32)


def prefill(attention: NeuronAttentionBase, x: Tensor) -> Tensor:
    cache = empty_cache(attention.cache_layout, num_rows=2)
    ctx = layer_context(Phase.PREFILL, positions(), cache, num_slots=16)
    return attention(x, ctx=ctx).hidden_states


def turned(x: Tensor, where: Tensor) -> Tensor:
    """Rotary embedding by its definition, in float64: pairs (j, j + D / 2) as complex numbers."""
    half = HEAD_DIM // 2
    speed = torch.tensor([10000.0 ** (-2 * j / HEAD_DIM) for j in range(half)]).double()
    angle = where.double()[:, None, :, None] * speed
    pairs = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def plain(
    weights: dict[str, Tensor],
    x: Tensor,
    *,
    scale: float = HEAD_DIM**-0.5,
    softcap: float | None = None,
    rotary: bool = False,
    norm_eps: float | None = None,
    clip: float | None = None,
    **sees: int,
) -> Tensor:
    """The whole module in float64, from the names of its weights.

    sees: window or chunk_size.
    """
    wide = {name: tensor.double() for name, tensor in weights.items()}

    def project(name: str, x: Tensor) -> Tensor:
        y = F.linear(x, wide[f"{name}.weight"], wide.get(f"{name}.bias"))
        return y if clip is None or name == "o_proj" else y.clamp(-clip, clip)

    def heads(name: str) -> Tensor:
        projected = project(f"qkv_proj.{name}_proj", x.double())
        x_heads = projected.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
        if norm_eps is not None and name != "v":
            rms = (x_heads.pow(2).mean(-1, keepdim=True) + norm_eps).sqrt()
            x_heads = x_heads / rms * wide[f"{name}_layernorm.weight"]
        return turned(x_heads, positions()) if rotary and name != "v" else x_heads

    allowed = allowed_pairs(positions(), positions(), **sees)
    out = plain_attention(
        heads("q"), heads("k"), heads("v"), allowed, scale, softcap, wide.get("sinks")
    )
    return project("o_proj", out.transpose(1, 2).flatten(2))


def close(got: Tensor, expected: Tensor) -> None:
    """Equal at every place that is not padding."""
    real = positions() >= 0
    torch.testing.assert_close(
        got.double()[real], expected[real], rtol=ATTENTION_FP32, atol=ATTENTION_FP32
    )


class OwnNorm(nn.Module):
    """A norm as a model would bring it, over the last dimension of whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HEAD_DIM))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1) * self.weight


def head_norms() -> dict[str, nn.Module]:
    return {"q_layernorm": RMSNorm(HEAD_DIM, 0.1), "k_layernorm": OwnNorm()}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "biases": ({"qkv_bias": True, "o_bias": True}, {}),
    "rotary": ({"rotary_emb": RotaryEmbedding(HEAD_DIM)}, {"rotary": True}),
    "scale": ({"scale": 0.9}, {"scale": 0.9}),
    "softmax_scale divides": ({"softmax_scale": 5.0}, {"scale": 0.2}),
    "softcap": ({"softcap": 0.7}, {"softcap": 0.7}),
    "sinks": ({"has_sinks": True}, {}),
    "window": ({"sliding_window": 2}, {"window": 2}),
    "chunks": ({"attention_chunk_size": 2}, {"chunk_size": 2}),
    "qk norm before rotary": (
        {"norms": head_norms, "rotary_emb": RotaryEmbedding(HEAD_DIM)},
        {"norm_eps": 0.1, "rotary": True},
    ),
    "qk norm after the heads have moved": (
        {"norms": head_norms, "post_transpose_layernorm": True},
        {"norm_eps": 0.1},
    ),
    "clip": ({"clip_qkv": 0.6, "qkv_bias": True}, {"clip": 0.6}),
    "sinks by NxDI's name": ({"learned_sinks_size": 1}, {}),
    "all together": (
        {
            "norms": head_norms,
            "rotary_emb": RotaryEmbedding(HEAD_DIM),
            "qkv_bias": True,
            "scale": 0.9,
            "softcap": 0.7,
            "has_sinks": True,
            "sliding_window": 3,
        },
        {"norm_eps": 0.1, "rotary": True, "scale": 0.9, "softcap": 0.7, "window": 3},
    ),
}


def maker(options: dict[str, Any], **more: Any) -> Callable[[], NeuronAttentionBase]:
    """Builds the module anew each time, with norms of its own."""
    plain_options = {name: value for name, value in options.items() if name != "norms"}
    make_norms = options.get("norms", dict)
    return lambda: make(**plain_options, **make_norms(), **more)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("num_q", "num_kv"), [(4, 2), (4, 4), (3, 1)])
def test_prefill_against_the_formula(case: str, num_q: int, num_kv: int) -> None:
    options, formula = CASES[case]
    attention = filled(maker(options, num_q=num_q, num_kv=num_kv))
    x = drawn(2, LENGTH, HIDDEN)
    close(prefill(attention, x), plain(attention.state_dict(), x, **formula))


@pytest.mark.parametrize("case", CASES)
def test_decode_token_by_token_against_the_formula(case: str) -> None:
    options, formula = CASES[case]
    attention = filled(maker(options))
    x = drawn(2, LENGTH, HIDDEN)
    cache = empty_cache(attention.cache_layout, num_rows=2)
    cache = type(cache)(*(torch.zeros_like(tensor) for tensor in cache))
    steps = []
    for place in range(LENGTH):
        where = positions()[:, place : place + 1]
        ctx = layer_context(Phase.DECODE, where, cache, num_slots=16)
        steps.append(attention(x[:, place : place + 1], ctx=ctx).hidden_states)
        cache = ctx.step.caches[0]
    close(torch.cat(steps, dim=1), plain(attention.state_dict(), x, **formula))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("num_q", "num_kv", "tp"), [(4, 2, 2), (4, 2, 4), (3, 1, 2), (3, 3, 2)])
def test_ranks_together_against_the_formula(case: str, num_q: int, num_kv: int, tp: int) -> None:
    options, formula = CASES[case]
    build = maker(options, num_q=num_q, num_kv=num_kv, neuron={"tp_degree": tp})
    full, x = full_weights(build), drawn(2, LENGTH, HIDDEN)
    modules = rank_modules(build, tp, full)
    for got in SimulatedWorld(tp).run([lambda m=m: prefill(m, x) for m in modules]):
        close(got, plain(full, x, **formula))


def test_sequence_parallelism_takes_and_gives_pieces() -> None:
    build = maker({}, neuron={"tp_degree": 2, "sequence_parallel_enabled": True})
    full, x = full_weights(build), drawn(2, LENGTH, HIDDEN)
    parts = zip(rank_modules(build, 2, full), x.chunk(2, dim=1), strict=True)
    got = SimulatedWorld(2).run([lambda m=m, part=part: prefill(m, part) for m, part in parts])
    close(torch.cat(got, dim=1), plain(full, x))


def test_default_scale_and_head_dim() -> None:
    attention = NeuronAttentionBase(
        tiny_config(), hidden_size=HIDDEN, num_attention_heads=2, num_key_value_heads=1
    )
    assert attention.head_dim == 8
    assert attention.attend.scale == 1 / math.sqrt(8)


def test_scale_and_divisor_contradict_each_other() -> None:
    message = r"give scale=0.5 \(multiplies QK\^T\) or softmax_scale=2.0 \(divides it\), not both"
    with pytest.raises(ConfigError, match=message):
        make(scale=0.5, softmax_scale=2.0)


def test_head_counts_that_do_not_group() -> None:
    with pytest.raises(ConfigError, match=r"num_attention_heads=4 .*num_key_value_heads=3"):
        make(4, 3)


def test_heads_are_counted_per_rank() -> None:
    with tensor_parallel(4):
        attention = make(4, 2)
    assert (attention.num_heads, attention.num_key_value_heads) == (1, 1)
    assert attention.tp_degree == 4


@pytest.mark.parametrize(
    ("options", "mask", "layout"),
    [
        ({}, Causal(), ContiguousCache(2, 16, (HEAD_DIM, HEAD_DIM))),
        ({"sliding_window": 5}, SlidingWindow(5), WindowCache(2, 5, (HEAD_DIM, HEAD_DIM))),
        ({"attention_chunk_size": 5}, Chunked(5), ChunkedCache(2, 5, (HEAD_DIM, HEAD_DIM))),
        # A window that nothing leaves hides nothing, and needs no rolling cache; nor does a chunk.
        ({"sliding_window": 16}, Causal(), ContiguousCache(2, 16, (HEAD_DIM, HEAD_DIM))),
        ({"attention_chunk_size": 16}, Causal(), ContiguousCache(2, 16, (HEAD_DIM, HEAD_DIM))),
    ],
)
def test_mask_and_cache_follow_from_what_a_query_sees(
    options: dict[str, int], mask: object, layout: object
) -> None:
    attention = make(**options)
    assert attention.attend.mask == mask
    assert attention.cache_layout == layout
    paged = make(**options, neuron={"is_block_kv_layout": True, "pa_block_size": 4})
    assert paged.attend.mask == mask
    assert paged.cache_layout == PagedCache(2, 4, 4, (HEAD_DIM, HEAD_DIM))


def test_a_window_and_chunks_contradict_each_other() -> None:
    message = "sliding_window=3 or attention_chunk_size=5, not both; leave one out"
    with pytest.raises(ConfigError, match=message):
        make(sliding_window=3, attention_chunk_size=5)


def test_sinks_are_weights_of_each_head() -> None:
    assert make().sinks is None
    with tensor_parallel(2):
        attention = make(3, 3, has_sinks=True)
    assert attention.sinks is not None
    assert attention.sinks.shape == (2,)


def test_output_unpacks_to_four_as_in_nxdi() -> None:
    hidden, present, cos, sin = AttentionOutput(torch.ones(1))
    assert torch.equal(hidden, torch.ones(1))
    assert (present, cos, sin) == (None, None, None)


STEPS = [
    "prep_qkv_tensors",
    "get_qkv_proj",
    "split_heads",
    "apply_rotary_embedding",
    "merge_and_project",
    "get_o_proj",
]


def test_each_step_may_be_overridden() -> None:
    class Seen(NeuronAttentionBase):
        """Records its steps, and negates what it attends with."""

        def __getattribute__(self, name: str) -> Any:
            if name in STEPS:
                steps.append(name)
            return super().__getattribute__(name)

        def merge_and_project(self, out: Tensor) -> Tensor:
            return super().merge_and_project(-out)

    steps: list[str] = []
    shape = {"hidden_size": HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 2}
    attention, x = filled(lambda: Seen(tiny_config(), **shape)), drawn(2, LENGTH, HIDDEN)
    close(-prefill(attention, x), plain(attention.state_dict(), x))
    assert list(dict.fromkeys(steps)) == STEPS


def test_the_call_that_nxdi_layers_make() -> None:
    """Positional up to the cache, everything else by keyword, the step found by itself."""
    attention = filled(maker(*CASES["rotary"][:1]))
    x, where = drawn(2, LENGTH, HIDDEN), positions()
    cache = empty_cache(attention.cache_layout, num_rows=2)
    ctx = layer_context(Phase.PREFILL, where, cache, num_slots=16)
    mask = torch.zeros(2, 1, LENGTH, LENGTH, dtype=torch.bool)  # the step's own is used
    with running(lambda module: ctx):
        hidden, present, cos, sin = attention(
            x, mask, where.clamp(min=0), None, adapter_ids=None, idx=0, is_for_context_encoding=True
        )
    close(hidden, plain(attention.state_dict(), x, rotary=True))
    assert [t.shape for t in present] == [(2, 2, LENGTH, HEAD_DIM)] * 2
    assert cos.shape == sin.shape == (2, LENGTH, HEAD_DIM)


def test_angles_handed_on_are_used() -> None:
    attention = filled(maker(*CASES["rotary"][:1]))
    x = drawn(2, LENGTH, HIDDEN)
    cache = empty_cache(attention.cache_layout, num_rows=2)
    ctx = layer_context(Phase.PREFILL, positions(), cache, num_slots=16)
    still = torch.ones(2, LENGTH, HEAD_DIM), torch.zeros(2, LENGTH, HEAD_DIM)
    output = attention(x, ctx=ctx, cos_cache=still[0], sin_cache=still[1])
    close(output.hidden_states, plain(attention.state_dict(), x))
    assert output.cos_cache is still[0]


@pytest.mark.parametrize("keyword", ["position_ids", "rotary_position_ids"])
def test_positions_to_turn_by(keyword: str) -> None:
    """Rotary positions count from anywhere: attention sees only their differences."""
    attention = filled(maker(*CASES["rotary"][:1]))
    x = drawn(2, LENGTH, HIDDEN)
    cache = empty_cache(attention.cache_layout, num_rows=2)
    ctx = layer_context(Phase.PREFILL, positions(), cache, num_slots=16)
    expected = plain(attention.state_dict(), x, rotary=True)
    close(attention(x, ctx=ctx, **{keyword: positions() + 5}).hidden_states, expected)
    with pytest.raises(AssertionError):
        close(attention(x, ctx=ctx, **{keyword: positions() * 2}).hidden_states, expected)


def test_polar_rotation_turns_neighbours() -> None:
    attention = filled(lambda: make(rope_theta=100.0))
    q, k, v = drawn(2, 4, LENGTH, HEAD_DIM), drawn(2, 2, LENGTH, HEAD_DIM), drawn(1)
    turned_q, turned_k, *_ = attention.apply_rotary_embedding(
        q, k, v, positions(), None, None, use_polar_compatible_rope=True
    )
    speed = torch.tensor([100.0 ** (-2 * j / HEAD_DIM) for j in range(HEAD_DIM // 2)])
    angle = positions()[:, None, :, None].float() * speed
    for x, got in ((q, turned_q), (k, turned_k)):
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(
            torch.ones_like(angle), angle
        )
        expected = torch.view_as_real(pairs).flatten(-2)
        torch.testing.assert_close(got, expected, rtol=ATTENTION_FP32, atol=ATTENTION_FP32)


def test_without_a_rotary_embedding_positions_are_not_turned_and_angles_pass_by() -> None:
    attention = make(rotary_emb=None)
    q, k, v, cos = drawn(2, 4, LENGTH, HEAD_DIM), drawn(2), drawn(2), drawn(2)
    assert attention.apply_rotary_embedding(q, k, v, positions(), cos, None) == (q, k, cos, None)


def test_outside_a_step() -> None:
    with pytest.raises(ConfigError, match=r"called outside a step of its model; pass ctx=ctx"):
        make()(drawn(2, LENGTH, HIDDEN))


@pytest.mark.parametrize("kernel", [False, True])
def test_a_norm_left_to_the_fused_kernel_is_applied(kernel: bool) -> None:
    """It is handed over always, and not applied before only where the kernel is asked for."""
    attention = filled(lambda: make(neuron={"qkv_kernel_enabled": kernel}))
    norm = RMSNorm(HIDDEN)
    norm.weight.data.fill_(2.0)
    x = drawn(2, LENGTH, HIDDEN)
    cache = empty_cache(attention.cache_layout, num_rows=2)
    ctx = layer_context(Phase.PREFILL, positions(), cache, num_slots=16)
    expected = plain(attention.state_dict(), norm(x) if kernel else x)
    close(attention(x, ctx=ctx, rmsnorm=norm).hidden_states, expected)

"""Law 1: the smallest rung that is large enough; an error exactly when none is."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nxdi.config import NeuronConfig
from nxdi.errors import BucketError
from nxdi.graph.buckets import choose_bucket, make_ladder
from nxdi.graph.plan import plan_graphs
from nxdi.types import Phase

ladders = st.sets(st.integers(1, 5000), min_size=1, max_size=8).map(sorted)


@given(ladders, st.integers(1, 5000))
def test_smallest_rung_that_fits(ladder: list[int], need: int) -> None:
    fitting = [rung for rung in ladder if rung >= need]
    if fitting:
        assert choose_bucket(need, ladder, "prompt", "raise it") == min(fitting)
    else:
        with pytest.raises(BucketError, match=rf"{need} .*\({ladder[-1]}\); raise it"):
            choose_bucket(need, ladder, "prompt", "raise it")


@given(st.integers(1, 200_000))
def test_ladders(longest: int) -> None:
    ladder = make_ladder(longest)
    assert ladder[-1] == longest
    assert list(ladder) == sorted(set(ladder))
    assert all(rung >= 128 and rung & (rung - 1) == 0 for rung in ladder[:-1])
    # Each rung is at most twice the one before; the last may stand for a left-out power as well.
    assert all(b == 2 * a for a, b in pairwise(ladder[:-1]))
    assert len(ladder) == 1 or longest < 2 * 2**0.5 * ladder[-2]


@st.composite
def configs(draw: st.DrawFn) -> NeuronConfig:
    seq_len = draw(st.integers(2, 600))
    batch = draw(st.integers(1, 6))
    return NeuronConfig(
        seq_len=seq_len,
        max_context_length=draw(st.integers(1, seq_len)),
        batch_size=batch,
        ctx_batch_size=draw(st.integers(1, batch)),
        token_generation_batches=draw(
            st.none() | st.sets(st.integers(1, batch), min_size=1).map(sorted)
        ),
        enable_bucketing=draw(st.booleans()),
    )


@given(
    configs(),
    st.sampled_from([Phase.PREFILL, Phase.DECODE]),
    st.integers(1, 7),
    st.integers(1, 700),
)
def test_a_plan_chooses_the_smallest_batch_then_the_smallest_length(
    config: NeuronConfig, phase: Phase, num_rows: int, length: int
) -> None:
    plan = plan_graphs(config)
    fitting = [g for g in plan.of(phase) if g.batch_size >= num_rows and g.length >= length]
    if fitting:
        best = min(fitting, key=lambda graph: (graph.batch_size, graph.length))
        assert plan.choose(phase, num_rows, length) == best
    else:
        with pytest.raises(BucketError):
            plan.choose(phase, num_rows, length)


@given(configs())
def test_a_plan_covers_all_that_the_config_allows(config: NeuronConfig) -> None:
    plan = plan_graphs(config)
    assert plan.max_length(Phase.PREFILL) == config.max_context_length
    assert plan.max_length(Phase.DECODE) == config.max_length
    assert plan.max_batch(Phase.DECODE) == config.tkg_batch_size
    assert len({graph.name for graph in plan.graphs}) == len(plan.graphs)


@st.composite
def prefix_configs(draw: st.DrawFn) -> NeuronConfig:
    seq_len = draw(st.integers(2, 600))
    longest = draw(st.integers(1, seq_len))
    return NeuronConfig(
        seq_len=seq_len,
        max_context_length=longest,
        enable_bucketing=True,
        context_encoding_buckets=draw(
            st.none() | st.sets(st.integers(1, longest), min_size=1, max_size=4).map(sorted)
        ),
        prefix_buckets=draw(
            st.none() | st.sets(st.integers(0, seq_len), min_size=1, max_size=4).map(sorted)
        ),
        is_block_kv_layout=True,
        is_prefix_caching=True,
        pa_block_size=draw(st.integers(1, seq_len)),
    )


@given(prefix_configs(), st.integers(1, 700), st.integers(1, 700))
def test_a_prompt_after_a_prefix_has_the_graph_with_the_fewest_slots(
    config: NeuronConfig, num_new: int, num_prefix: int
) -> None:
    """And with prefix_buckets that graph is one as long as NxDI's pair, if NxDI has one."""
    plan, total = plan_graphs(config), num_prefix + num_new
    pieces = [graph.length for graph in plan.of(Phase.PREFILL)]
    prefixes = config.prefix_buckets
    farthest = config.max_length if prefixes is None else pieces[-1] + prefixes[-1]
    if num_new > pieces[-1] or total > min(farthest, config.max_length):
        with pytest.raises(BucketError):
            plan.choose(Phase.EXTEND, 1, num_new, total)
        return
    chosen = plan.choose(Phase.EXTEND, 1, num_new, total)
    assert chosen.length >= num_new
    assert chosen.context >= total
    if prefixes is not None:
        piece = min(length for length in pieces if length >= num_new)
        left = max(num_prefix - (piece - num_new), 0)
        buckets = [bucket for bucket in (0, *prefixes) if bucket >= left]
        if buckets:
            assert (chosen.length, chosen.context) == (
                piece,
                min(piece + min(buckets), config.max_length),
            )

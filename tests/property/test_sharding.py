"""Law 6 for weights: the pieces of all ranks, put together, are the whole, for any head counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from nxdi.parallel_layers.sharding import DimShard, HeadLayout, HeadShard, plan_heads

HEAD_DIM = 2


@st.composite
def head_counts(draw: st.DrawFn) -> tuple[int, int, int]:
    num_kv = draw(st.integers(1, 12))
    return num_kv * draw(st.integers(1, 12)), num_kv, draw(st.integers(1, 32))


def unshard(pieces: list[Tensor], heads: tuple[tuple[int, ...], ...], num_heads: int) -> Tensor:
    """The full weight from the pieces of all ranks; padding heads must be zero, copies equal."""
    full = torch.full((num_heads * HEAD_DIM, 3), torch.nan)
    for piece, own in zip(pieces, heads, strict=True):
        for head, rows in zip(own, piece.split(HEAD_DIM), strict=True):
            if head < 0:
                assert not bool(rows.any())
                continue
            place = full[head * HEAD_DIM : (head + 1) * HEAD_DIM]
            assert bool(place.isnan().all()) or torch.equal(place, rows)
            place.copy_(rows)
    return full


def check_heads(layout: HeadLayout, num_q: int, num_kv: int, tp: int) -> None:
    assert (len(layout.q), len(layout.kv)) == (tp, tp)
    assert len({len(own) for own in layout.q}) == len({len(own) for own in layout.kv}) == 1
    placed = [head for own in layout.q for head in own if head >= 0]
    assert sorted(placed) == list(range(num_q)), "every query head exactly once"
    assert {head for own in layout.kv for head in own if head >= 0} == set(range(num_kv))
    group, local_group = num_q // num_kv, layout.num_q_per_rank // layout.num_kv_per_rank
    assert layout.num_q_per_rank == local_group * layout.num_kv_per_rank
    for q_heads, kv_heads in zip(layout.q, layout.kv, strict=True):
        for place, q_head in enumerate(q_heads):
            if q_head >= 0:
                assert kv_heads[place // local_group] == q_head // group, "with its own kv head"


@given(head_counts())
@example((71, 1, 4))
@example((7, 7, 2))
@example((56, 8, 32))
@example((9, 3, 2))
@example((9, 3, 4))
@example((9, 3, 8))
@example((1, 1, 32))
@example((32, 8, 8))
def test_heads_stay_together_and_can_be_put_together(counts: tuple[int, int, int]) -> None:
    num_q, num_kv, tp = counts
    layout = plan_heads(num_q, num_kv, tp)
    check_heads(layout, num_q, num_kv, tp)
    for heads, num_heads in ((layout.q, num_q), (layout.kv, num_kv)):
        full = torch.randn(num_heads * HEAD_DIM, 3)
        local = (len(heads[0]) * HEAD_DIM, 3)
        shard = HeadShard(0, heads, HEAD_DIM, num_heads)
        assert shard.full_shape(local) == tuple(full.shape)
        pieces = [shard.cut(full, rank, local) for rank in range(tp)]
        assert all(piece.shape == local for piece in pieces)
        assert torch.equal(unshard(pieces, heads, num_heads), full)


@given(head_counts())
def test_output_projections_are_cut_as_the_query_heads(counts: tuple[int, int, int]) -> None:
    num_q, num_kv, tp = counts
    layout = plan_heads(num_q, num_kv, tp)
    full = torch.randn(3, num_q * HEAD_DIM)
    local = (3, layout.num_q_per_rank * HEAD_DIM)
    shard = HeadShard(1, layout.q, HEAD_DIM, num_q)
    pieces = [shard.cut(full, rank, local).T for rank in range(tp)]
    assert torch.equal(unshard(pieces, layout.q, num_q), full.T)


@given(st.integers(1, 40), st.integers(1, 16), st.integers(0, 1))
def test_padded_dimensions(size: int, tp: int, dim: int) -> None:
    shape = (size, 3) if dim == 0 else (3, size)
    full, local_size = torch.randn(shape), -(-size // tp)
    local = (local_size, 3) if dim == 0 else (3, local_size)
    shard = DimShard(dim, size)
    assert shard.full_shape(local) == shape
    together = torch.cat([shard.cut(full, rank, local) for rank in range(tp)], dim)
    assert torch.equal(together.narrow(dim, 0, size), full)
    assert not bool(together.narrow(dim, size, local_size * tp - size).any())


@pytest.mark.parametrize(
    "wrong",
    [
        HeadLayout(q=((0, 1), (2, 2)), kv=((0,), (1,))),
        HeadLayout(q=((0, 2), (1, 3)), kv=((0,), (1,))),
        HeadLayout(q=((0, 1), (2, 3)), kv=((0,), (0,))),
        HeadLayout(q=((0, 1), (2, -1)), kv=((0,), (1,))),
    ],
)
def test_the_law_can_fail(wrong: HeadLayout) -> None:
    with pytest.raises(AssertionError):
        check_heads(wrong, num_q=4, num_kv=2, tp=2)

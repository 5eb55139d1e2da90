from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nxdi.errors import ConfigError
from nxdi.parallel_layers.sharding import (
    DimShard,
    ExpertBiasShard,
    ExpertLayout,
    ExpertShard,
    HeadShard,
    TurnedShard,
    plan_heads,
    set_shard,
    shard_of,
)


def matrix(rows: int, columns: int) -> Tensor:
    return torch.arange(1.0, rows * columns + 1).view(rows, columns)


@pytest.mark.parametrize("dim", [0, 1])
def test_equal_pieces(dim: int) -> None:
    full = matrix(4, 6)
    shard = DimShard(dim, full.shape[dim])
    local = (2, 6) if dim == 0 else (4, 3)
    pieces = [shard.cut(full, rank, local) for rank in range(2)]
    assert torch.equal(torch.cat(pieces, dim), full)
    assert shard.full_shape(local) == (4, 6)


def test_pieces_are_views_where_nothing_is_padded() -> None:
    full = matrix(4, 6)
    piece = DimShard(0, 4).cut(full, 1, (2, 6))
    assert piece.data_ptr() == full[2].data_ptr()


def test_the_last_pieces_are_padded_with_zeros() -> None:
    shard = DimShard(0, 5)
    pieces = [shard.cut(matrix(5, 1), rank, (2, 1)).flatten().tolist() for rank in range(4)]
    assert pieces == [[1, 2], [3, 4], [5, 0], [0, 0]]


def test_padding_keeps_the_dtype() -> None:
    full = matrix(3, 2).to(torch.bfloat16)
    assert DimShard(0, 3).cut(full, 1, (2, 2)).dtype == torch.bfloat16


HEADS = ((0, 1), (2, -1))


def test_whole_heads_with_a_head_of_zeros() -> None:
    shard = HeadShard(0, HEADS, head_dim=2, num_heads=3)
    full = matrix(6, 1)
    assert shard.cut(full, 0, (4, 1)).flatten().tolist() == [1, 2, 3, 4]
    assert shard.cut(full, 1, (4, 1)).flatten().tolist() == [5, 6, 0, 0]
    assert shard.full_shape((4, 1)) == (6, 1)


def test_heads_along_the_input_dimension() -> None:
    shard = HeadShard(1, HEADS, head_dim=2, num_heads=3)
    assert shard.cut(matrix(1, 6), 1, (1, 4)).flatten().tolist() == [5, 6, 0, 0]
    assert shard.full_shape((7, 4)) == (7, 6)


def test_heads_of_a_bias() -> None:
    shard = HeadShard(0, HEADS, head_dim=2, num_heads=3)
    assert shard.cut(torch.arange(6.0), 1, (4,)).tolist() == [4, 5, 0, 0]


def test_consecutive_heads_are_a_view() -> None:
    full = matrix(6, 2)
    piece = HeadShard(0, ((0,), (1, 2)), 2, 3).cut(full, 1, (4, 2))
    assert piece.data_ptr() == full[2].data_ptr()


@pytest.mark.parametrize(
    ("num_q", "num_kv", "tp", "q", "kv"),
    [
        (4, 2, 1, [(0, 1, 2, 3)], [(0, 1)]),
        (4, 2, 2, [(0, 1), (2, 3)], [(0,), (1,)]),
        # Fewer kv heads than ranks: each is copied, its query heads are dealt.
        (4, 2, 4, [(0,), (1,), (2,), (3,)], [(0,), (0,), (1,), (1,)]),
        (4, 1, 2, [(0, 1), (2, 3)], [(0,), (0,)]),
        # What does not divide is filled with heads of zeros.
        (3, 3, 2, [(0, 1), (2, -1)], [(0, 1), (2, -1)]),
        (3, 1, 2, [(0, 1), (2, -1)], [(0,), (0,)]),
        (2, 2, 4, [(0,), (-1,), (1,), (-1,)], [(0,), (0,), (1,), (1,)]),
    ],
)
def test_plan_heads(
    num_q: int,
    num_kv: int,
    tp: int,
    q: list[tuple[int, ...]],
    kv: list[tuple[int, ...]],
) -> None:
    layout = plan_heads(num_q, num_kv, tp)
    assert layout.q == tuple(q)
    assert layout.kv == tuple(kv)
    assert (layout.num_q_per_rank, layout.num_kv_per_rank) == (len(q[0]), len(kv[0]))


@pytest.mark.parametrize(("num_q", "num_kv"), [(7, 2), (4, 0), (4, 8)])
def test_heads_that_do_not_group(num_q: int, num_kv: int) -> None:
    message = f"num_attention_heads={num_q} .*positive multiple of num_key_value_heads={num_kv}"
    with pytest.raises(ConfigError, match=message):
        plan_heads(num_q, num_kv, 2)


@pytest.mark.parametrize("rule", [DimShard(0, 6), HeadShard(0, ((0, 1), (2, -1)), 2, 3)])
def test_a_turned_matrix_is_cut_where_it_was(rule: DimShard | HeadShard) -> None:
    full, turned = torch.arange(30).view(6, 5), TurnedShard(rule)
    assert turned.full_shape((5, 4)) == (6, 5)
    for rank in (0, 1):
        assert torch.equal(turned.cut(full, rank, (5, 4)), rule.cut(full, rank, (4, 5)).T)


def test_rules_travel_with_their_parameter() -> None:
    parameter = nn.Parameter(torch.empty(2, 3))
    assert shard_of(parameter) is None
    set_shard(parameter, DimShard(0, 4))
    assert shard_of(parameter) == DimShard(0, 4)
    module = nn.Module()
    module.weight = parameter
    assert shard_of(module.state_dict(keep_vars=True)["weight"]) == DimShard(0, 4)


def test_experts_and_parts_of_their_width() -> None:
    """4 experts, gate and up of 3 values each: ranks 0 and 1 share the first two experts."""
    layout = ExpertLayout(num_experts=4, tp_degree=2, ep_degree=2)
    shard = ExpertShard(layout, dim=2, full_size=3, parts=2)
    local = (layout.num_local, 1, 4)
    full = matrix(4, 6).view(4, 1, 6)
    pieces = [shard.cut(full, rank, local).flatten(1).tolist() for rank in range(4)]
    assert pieces == [
        [[1, 2, 4, 5], [7, 8, 10, 11]],
        [[3, 0, 6, 0], [9, 0, 12, 0]],
        [[13, 14, 16, 17], [19, 20, 22, 23]],
        [[15, 0, 18, 0], [21, 0, 24, 0]],
    ]
    assert shard.full_shape(local) == (4, 1, 6)


def test_whole_experts_are_views() -> None:
    layout = ExpertLayout(num_experts=4, tp_degree=1, ep_degree=2)
    full = matrix(4, 6).view(4, 1, 6)
    piece = ExpertShard(layout, dim=2, full_size=3, parts=2).cut(full, 1, (2, 1, 6))
    assert piece.data_ptr() == full[2].data_ptr()


def test_a_bias_of_experts_counts_once() -> None:
    layout = ExpertLayout(num_experts=4, tp_degree=2, ep_degree=2)
    shard = ExpertBiasShard(layout)
    pieces = [shard.cut(matrix(4, 1), rank, (2, 1)).flatten().tolist() for rank in range(4)]
    assert pieces == [[1, 2], [0, 0], [3, 4], [0, 0]]
    assert shard.full_shape((2, 1)) == (4, 1)

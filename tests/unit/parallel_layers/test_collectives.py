from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nxdi.errors import ShapeError
from nxdi.parallel_layers import collectives  # noqa: F401  registers ops
from nxdi.parallel_layers.groups import SimulatedWorld

PAIRS = [0, 1, 2, 3]  # with group_size 2: the mesh [[0, 1], [2, 3]]
ops = torch.ops.nxdi


def values(rank: int, *shape: int) -> Tensor:
    """Numbers whose sum depends on the order of additions."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank)) * 10.0**rank


def run(size: int, function: Callable[[int], Tensor]) -> list[Tensor]:
    world = SimulatedWorld(size)
    return world.run([lambda rank=rank: function(rank) for rank in world.local_ranks])


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_all_reduce_sums_in_rank_order(size: int) -> None:
    expected = values(0, 7)
    for rank in range(1, size):
        expected = expected + values(rank, 7)
    for got in run(size, lambda r: ops.all_reduce(values(r, 7), "sum", list(range(size)), size)):
        assert torch.equal(got, expected)


def test_all_reduce_max() -> None:
    got = run(3, lambda rank: ops.all_reduce(values(rank, 5), "max", [0, 1, 2], 3))
    expected = torch.stack([values(rank, 5) for rank in range(3)]).amax(dim=0)
    assert all(torch.equal(x, expected) for x in got)


def test_all_reduce_within_pairs() -> None:
    got = run(4, lambda rank: ops.all_reduce(torch.tensor([float(rank)]), "sum", PAIRS, 2))
    assert [x.item() for x in got] == [1, 1, 5, 5]


def test_reduction_leaves_its_input_alone() -> None:
    def work(rank: int) -> Tensor:
        x = values(rank, 4)
        ops.all_reduce(x, "sum", [0, 1], 2)
        return x

    assert all(torch.equal(x, values(rank, 4)) for rank, x in enumerate(run(2, work)))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_all_gather(dim: int) -> None:
    got = run(3, lambda rank: ops.all_gather(values(rank, 2, 3, 4), dim, [0, 1, 2], 3))
    expected = torch.cat([values(rank, 2, 3, 4) for rank in range(3)], dim)
    assert all(torch.equal(x, expected) for x in got)


@pytest.mark.parametrize("dim", [0, 1])
def test_reduce_scatter_is_a_piece_of_the_sum(dim: int) -> None:
    got = run(2, lambda rank: ops.reduce_scatter(values(rank, 4, 6), "sum", dim, [0, 1], 2))
    total = values(0, 4, 6) + values(1, 4, 6)
    assert torch.equal(torch.cat(got, dim), total)


def test_reduce_scatter_within_pairs() -> None:
    got = run(4, lambda rank: ops.reduce_scatter(values(rank, 4), "sum", 0, PAIRS, 2))
    assert torch.equal(torch.cat(got[:2]), values(0, 4) + values(1, 4))
    assert torch.equal(torch.cat(got[2:]), values(2, 4) + values(3, 4))


def test_all_to_all_turns_pieces_of_one_dim_into_another() -> None:
    """Each rank holds some features of every token, and ends with every feature of some tokens."""
    whole = values(0, 6, 8)
    columns = whole.chunk(2, dim=1)
    got = run(2, lambda rank: ops.all_to_all(columns[rank], 0, 1, [0, 1], 2))
    assert all(torch.equal(x, part) for x, part in zip(got, whole.chunk(2, dim=0), strict=True))


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(1,\) torch.float32', '\(2,\) torch.float32"):
        run(2, lambda rank: ops.all_reduce(torch.zeros(rank + 1), "sum", [0, 1], 2))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: ops.all_reduce(x, "sum", [0, 1], 2),
        lambda x: ops.all_gather(x, 1, [0, 1], 2),
        lambda x: ops.reduce_scatter(x, "sum", 0, [0, 1], 2),
        lambda x: ops.all_to_all(x, 0, 1, [0, 1], 2),
        lambda x: ops.all_to_all(x, 1, 1, [0, 1], 2),
    ],
)
def test_shape_on_meta_is_the_shape_that_comes_out(call: Callable[[Tensor], Tensor]) -> None:
    real = run(2, lambda rank: call(values(rank, 4, 6)))[0]
    meta = call(torch.empty(4, 6, device="meta"))
    assert (meta.shape, meta.dtype) == (real.shape, real.dtype)


def test_results_are_the_same_every_time() -> None:
    def once() -> Tensor:
        return run(8, lambda r: ops.all_reduce(values(r, 50), "sum", list(range(8)), 8))[5]

    first = once()
    assert all(torch.equal(once(), first) for _ in range(5))

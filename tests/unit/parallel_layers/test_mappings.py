from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nxdi.parallel_layers import mappings
from nxdi.parallel_layers.groups import SimulatedWorld
from nxdi.parallel_layers.parallel_state import ProcessGroup, tensor_parallel

PAIR = ProcessGroup(((0, 1),))
SINGLE = ProcessGroup(((0,),))
ALL: list[Callable[[Tensor, ProcessGroup | None], Tensor]] = [
    lambda x, group: mappings.reduce_from_tensor_model_parallel_region(x, group),
    lambda x, group: mappings.gather_from_tensor_model_parallel_region_with_dim(x, -1, group),
    lambda x, group: mappings.gather_from_sequence_parallel_region(x, 1, group),
    lambda x, group: mappings.reduce_scatter_to_sequence_parallel_region(x, 1, group),
    lambda x, group: mappings.all_to_all_in_tensor_model_parallel_region(x, 1, -1, group),
]


def values(rank: int) -> Tensor:
    return torch.arange(24.0).view(2, 4, 3) + 100 * rank


def run(function: Callable[[int], Tensor]) -> list[Tensor]:
    return SimulatedWorld(2).run([lambda rank=rank: function(rank) for rank in range(2)])


@pytest.mark.parametrize("mapping", ALL)
def test_a_group_of_one_is_free(mapping: Callable[..., Tensor]) -> None:
    x = values(0)
    assert mapping(x, SINGLE) is x
    assert mapping(x, None) is x


@pytest.mark.parametrize("mapping", ALL)
def test_the_default_is_the_current_tensor_parallel_group(mapping: Callable[..., Tensor]) -> None:
    def default(rank: int) -> Tensor:
        with tensor_parallel(2):
            return mapping(values(rank), None)

    explicit = run(lambda rank: mapping(values(rank), PAIR))
    assert all(torch.equal(a, b) for a, b in zip(run(default), explicit, strict=True))


def test_reduce() -> None:
    got = run(lambda rank: mappings.reduce_from_tensor_model_parallel_region(values(rank), PAIR))
    assert all(torch.equal(x, values(0) + values(1)) for x in got)


@pytest.mark.parametrize("dim", [-1, 0, 1, 2])
def test_gather(dim: int) -> None:
    got = run(
        lambda rank: mappings.gather_from_tensor_model_parallel_region_with_dim(
            values(rank), dim, PAIR
        )
    )
    assert all(torch.equal(x, torch.cat([values(0), values(1)], dim)) for x in got)


def test_gather_sequences() -> None:
    got = run(
        lambda rank: mappings.gather_from_sequence_parallel_region(values(rank), process_group=PAIR)
    )
    assert all(torch.equal(x, torch.cat([values(0), values(1)], 1)) for x in got)


@pytest.mark.parametrize("dim", [1, -2])
def test_reduce_scatter(dim: int) -> None:
    got = run(
        lambda rank: mappings.reduce_scatter_to_sequence_parallel_region(values(rank), dim, PAIR)
    )
    assert torch.equal(torch.cat(got, 1), values(0) + values(1))


def test_all_to_all() -> None:
    got = run(
        lambda rank: mappings.all_to_all_in_tensor_model_parallel_region(values(rank), 1, -1, PAIR)
    )
    whole = torch.cat([values(0), values(1)], -1)
    assert torch.equal(torch.cat(got, 1), whole)

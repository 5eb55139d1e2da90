from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from nxdi.errors import ConfigError, NxdiError, ShapeError
from nxdi.parallel_layers.groups import (
    SINGLE,
    DistributedWorld,
    SimulatedWorld,
    acting_as,
    current,
)


def as_ranks(world: SimulatedWorld, function: Callable[[int], Tensor]) -> list[Tensor]:
    """What every rank gets from `function(rank)`."""
    return world.run([lambda rank=rank: function(rank) for rank in world.local_ranks])


def gathered(ranks: list[int], rank: int, scale: float = 1.0) -> Tensor:
    """One exchange of [rank * scale] among `ranks`."""
    return torch.cat(current()[0].exchange(torch.tensor([rank * scale]), ranks))


def test_outside_any_world_there_is_one_rank() -> None:
    world, rank = current()
    assert (world.size, world.local_ranks, rank) == (1, (0,), 0)
    x = torch.ones(2)
    assert torch.equal(world.exchange(x, [0])[0], x)


def test_single_world_runs_in_place() -> None:
    done = []
    assert SINGLE.run([lambda: 5]) == [5]
    SINGLE.once(lambda: done.append(1))
    assert done == [1]


def test_acting_as_is_undone_on_the_way_out() -> None:
    world = SimulatedWorld(4)
    with acting_as(world, 3):
        assert current() == (world, 3)
    assert current()[1] == 0


def test_every_rank_receives_all_in_order() -> None:
    got = as_ranks(SimulatedWorld(4), lambda rank: gathered([0, 1, 2, 3], rank))
    assert [x.tolist() for x in got] == [[0, 1, 2, 3]] * 4


def test_order_is_that_of_the_call_not_of_the_ranks() -> None:
    got = as_ranks(SimulatedWorld(3), lambda rank: gathered([2, 0, 1], rank))
    assert [x.tolist() for x in got] == [[2, 0, 1]] * 3


def test_disjoint_groups_exchange_apart() -> None:
    mesh = [[0, 1], [2, 3]]
    got = as_ranks(SimulatedWorld(4), lambda rank: gathered(mesh[rank // 2], rank))
    assert [x.tolist() for x in got] == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_groups_of_two_shapes_after_each_other() -> None:
    def both(rank: int) -> Tensor:
        row = gathered([[0, 1], [2, 3]][rank // 2], rank)
        column = gathered([[0, 2], [1, 3]][rank % 2], rank, scale=10)
        return torch.cat([row, column, gathered([0, 1, 2, 3], rank)])

    got = as_ranks(SimulatedWorld(4), both)
    assert got[0].tolist() == [0, 1, 0, 20, 0, 1, 2, 3]
    assert got[3].tolist() == [2, 3, 10, 30, 0, 1, 2, 3]


def test_one_rank_runs_at_a_time_in_a_fixed_order() -> None:
    def trace() -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []

        def work(rank: int) -> Tensor:
            for step in range(3):
                seen.append((step, rank))
                gathered([0, 1, 2], rank)
            return torch.zeros(1)

        as_ranks(SimulatedWorld(3), work)
        return seen

    first = trace()
    assert sorted(first) == [(step, rank) for step in range(3) for rank in range(3)]
    assert all(trace() == first for _ in range(20))


def test_what_was_given_may_change_afterwards() -> None:
    """Compiled code reuses the memory of a tensor as soon as its own rank goes on."""

    def work(rank: int) -> Tensor:
        x = torch.tensor([float(rank)])
        received = current()[0].exchange(x, [0, 1])
        x.fill_(-1)
        return torch.cat([*received, torch.cat(current()[0].exchange(x, [0, 1]))])

    assert [x.tolist() for x in as_ranks(SimulatedWorld(2), work)] == [[0, 1, -1, -1]] * 2


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("exchanges_before", [0, 1])
def test_a_failing_rank_raises_its_own_error(failing: int, exchanges_before: int) -> None:
    def work(rank: int) -> Tensor:
        for _ in range(exchanges_before):
            gathered([0, 1, 2], rank)
        if rank == failing:
            raise KeyError(f"rank {rank} is broken")
        return gathered([0, 1, 2], rank)

    with pytest.raises(KeyError, match=f"rank {failing} is broken"):
        as_ranks(SimulatedWorld(3), work)


def test_a_world_works_again_after_a_failure() -> None:
    world = SimulatedWorld(2)
    with pytest.raises(ZeroDivisionError):
        as_ranks(world, lambda rank: torch.tensor([1 // rank]))
    got = as_ranks(world, lambda rank: gathered([0, 1], rank))
    assert [x.tolist() for x in got] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("eager_rank", [0, 1])
def test_one_rank_calls_one_collective_more(eager_rank: int) -> None:
    def work(rank: int) -> Tensor:
        gathered([0, 1], rank)
        return gathered([0, 1], rank) if rank == eager_rank else torch.zeros(1)

    with pytest.raises(ConfigError, match=rf"ranks \[{eager_rank}\] wait .* same collectives in"):
        as_ranks(SimulatedWorld(2), work)


def test_ranks_that_disagree_on_the_group() -> None:
    mesh = [[0, 1], [0, 1, 2], [0, 1, 2]]
    with pytest.raises(ConfigError, match=r"ranks \[0, 1, 2\] wait in a collective"):
        as_ranks(SimulatedWorld(3), lambda rank: gathered(mesh[rank], rank))


@pytest.mark.parametrize(
    "bring",
    [
        lambda rank: torch.zeros(rank + 1),
        lambda rank: torch.zeros(1, dtype=[torch.int32, torch.float32][rank]),
    ],
)
def test_different_tensors_in_one_collective(bring: Callable[[int], Tensor]) -> None:
    with pytest.raises(ShapeError, match=r"ranks \[0, 1\] brought different tensors .*float32"):
        as_ranks(
            SimulatedWorld(2), lambda rank: torch.cat(current()[0].exchange(bring(rank), [0, 1]))
        )


def test_once_calls_once() -> None:
    done = []
    SimulatedWorld(4).once(lambda: done.append(1))
    assert done == [1]


def test_a_world_of_none() -> None:
    with pytest.raises(ConfigError, match="at least one rank, not 0"):
        SimulatedWorld(0)


def test_one_function_per_rank() -> None:
    with pytest.raises(ConfigError, match="1 functions for a world of 2 ranks"):
        SimulatedWorld(2).run([lambda: 0])


@pytest.fixture
def distributed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DistributedWorld]:
    store = tmp_path_factory.mktemp("gloo") / "store"
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=0, world_size=1)
    yield DistributedWorld()
    torch.distributed.destroy_process_group()


def test_distributed_world_of_one(distributed: DistributedWorld) -> None:
    assert (distributed.size, distributed.local_ranks) == (1, (0,))
    assert distributed.run([lambda: current()[1]]) == [0]
    assert distributed.exchange(torch.ones(2), [0])[0].tolist() == [1, 1]


def test_distributed_collectives_span_all_processes(distributed: DistributedWorld) -> None:
    with pytest.raises(ConfigError, match=r"ranks \[0, 1\] in a world of 1.*tp_degree"):
        distributed.exchange(torch.ones(2), [0, 1])


def test_distributed_once(distributed: DistributedWorld) -> None:
    done = []
    distributed.once(lambda: done.append(1))
    assert done == [1]
    with pytest.raises(NxdiError, match="mine"):
        distributed.once(lambda: (_ for _ in ()).throw(NxdiError("mine")))


def test_the_other_ranks_learn_that_rank_0_failed(
    distributed: DistributedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed.local_ranks = (1,)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda failed, src: failed.fill_(1))
    done = []
    with pytest.raises(NxdiError, match="rank 0 failed in work that it does for all ranks"):
        distributed.once(lambda: done.append(1))
    assert done == []

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nxdi.errors import ConfigError
from nxdi.parallel_layers import parallel_state
from nxdi.parallel_layers.groups import SimulatedWorld
from nxdi.parallel_layers.parallel_state import ProcessGroup, tensor_parallel


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    parallel_state.destroy_model_parallel()


def test_without_initialisation_there_is_one_rank() -> None:
    assert not parallel_state.model_parallel_is_initialized()
    assert parallel_state.get_tensor_model_parallel_size() == 1
    assert parallel_state.get_tensor_model_parallel_rank() == 0


def test_initialize_and_destroy() -> None:
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=4)
    assert parallel_state.model_parallel_is_initialized()
    assert parallel_state.get_tensor_model_parallel_group().mesh == ((0, 1, 2, 3),)
    parallel_state.destroy_model_parallel()
    assert not parallel_state.model_parallel_is_initialized()


def test_a_block_ends_with_what_was_before() -> None:
    parallel_state.initialize_model_parallel(2)
    with tensor_parallel(8):
        assert parallel_state.get_tensor_model_parallel_size() == 8
    assert parallel_state.get_tensor_model_parallel_size() == 2
    with pytest.raises(ZeroDivisionError), tensor_parallel(8):
        _ = 1 // 0
    assert parallel_state.get_tensor_model_parallel_size() == 2


@pytest.mark.parametrize("size", [0, -1])
def test_at_least_one_rank(size: int) -> None:
    with pytest.raises(ConfigError, match=f"must be at least 1, not {size}"):
        parallel_state.initialize_model_parallel(size)


def test_the_rank_that_runs() -> None:
    world = SimulatedWorld(3)
    assert world.run([parallel_state.get_tensor_model_parallel_rank] * 3) == [0, 1, 2]


def test_the_group_of_a_step_is_the_world_that_runs_it() -> None:
    def size() -> int:
        return parallel_state.get_tensor_model_parallel_size()

    assert SimulatedWorld(3).run([size] * 3) == [3, 3, 3]
    assert size() == 1


def test_groups_as_a_mesh() -> None:
    group = ProcessGroup(((0, 1), (2, 3)))
    assert group.size() == 2
    assert group.flat_mesh == [0, 1, 2, 3]

from __future__ import annotations

import pytest

from nxdi.errors import ConfigError
from nxdi.parallel_layers.groups import SINGLE, SimulatedWorld
from nxdi.runtime import host_world as module
from nxdi.runtime.host_world import host_world


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def started_by_torchrun(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(processes))


def test_one_rank() -> None:
    assert host_world(1) is SINGLE


def test_several_ranks_in_one_process() -> None:
    world = host_world(4)
    assert isinstance(world, SimulatedWorld)
    assert world.local_ranks == (0, 1, 2, 3)


@pytest.mark.parametrize("num_ranks", [1, 4])
def test_one_process_of_torchrun_is_none(num_ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    started_by_torchrun(monkeypatch, 1)
    assert host_world(num_ranks).local_ranks == tuple(range(num_ranks))


def test_a_process_for_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    started_by_torchrun(monkeypatch, 4)
    connected = object()
    monkeypatch.setattr(module, "DistributedWorld", lambda: connected)
    assert host_world(4) is connected


@pytest.mark.parametrize("num_ranks", [1, 2, 8])
def test_another_number_of_processes(num_ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    started_by_torchrun(monkeypatch, 4)
    message = f"4 processes for tp_degree={num_ranks}; use --nproc-per-node {num_ranks}"
    with pytest.raises(ConfigError, match=message):
        host_world(num_ranks)

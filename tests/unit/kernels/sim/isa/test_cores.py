from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nxdi.errors import KernelError
from nxdi.kernels import simulate
from sim_kernels import nisa, nki, nl, random_array


@nki.jit
def halves(x: Any) -> Any:
    """Each core squares a half; both then sum everything, exchange and check."""
    rows, me = x.shape[0] // nl.num_programs(0), nl.program_id(0)
    out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
    total = nl.ndarray((2, 1), nl.float32, buffer=nl.shared_hbm)
    mine = nl.ds(me * rows, rows)
    nl.store(out[mine, :], nl.square(nl.load(x[mine, :])))
    nisa.core_barrier(out, (0, 1))
    both = nl.load(out)
    column = nl.ndarray((both.shape[0], 1), nl.float32)
    nisa.tensor_reduce(column, nl.add, both, 1)
    other = nl.ndarray(column.shape, nl.float32)
    nisa.sendrecv(column, other, 1 - me, 1 - me, pipe_id=0)
    same = nl.equal(column, other)
    nl.store(total[nl.ds(me, 1), :], same[0:1, :])
    return out, total


def test_two_cores_share_memory_and_exchange_tiles() -> None:
    x = random_array(64, 32)
    simulation = simulate(halves[2])
    out, total = simulation(x)
    assert np.array_equal(out, x * x)
    assert total.tolist() == [[1.0], [1.0]]
    assert [trace.meetings for trace in simulation.traces] == [2, 2]


def test_the_cores_meet_in_the_schedule() -> None:
    def kernel(x: Any) -> Any:
        out = nl.zeros((4, 4), nl.float32, buffer=nl.shared_hbm) if nl.program_id(0) else x
        shared = nl.ndarray((4, 4), nl.float32, buffer=nl.shared_hbm, name="shared")
        tile = nl.load(x)
        for _ in range(20 * nl.program_id(0)):
            tile = nl.square(tile)
        nl.store(shared[nl.ds(nl.program_id(0), 1), :], tile[0:1, :])
        nisa.core_barrier(shared, (0, 1))
        return out

    simulation = simulate(nki.jit(kernel)[2])
    simulation(np.ones((4, 4), np.float32))
    ends = []
    for slots in simulation.report().slots:
        (barrier,) = [slot for slot in slots if slot.instruction.op == "core_barrier"]
        ends.append(barrier.start)
    assert ends[0] == pytest.approx(ends[1])
    assert ends[0] > 2000


def test_the_same_run_twice_is_the_same() -> None:
    x = random_array(64, 32)
    runs = [simulate(halves[2]) for _ in range(2)]
    for run in runs:
        run(x)
    first, second = ([item.op for item in run.traces[1].instructions] for run in runs)
    assert first == second


@pytest.mark.parametrize("core", [0, 1])
def test_an_error_of_one_core_is_the_error(core: int) -> None:
    def kernel(x: Any) -> Any:
        assert nl.program_id(0) != core, f"core {core}"
        nisa.core_barrier(x, (0, 1))

    with pytest.raises(AssertionError, match=f"core {core}"):
        simulate(nki.jit(kernel)[2])(random_array(4, 4))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_disjoint_parts_do_not_race(dim: int) -> None:
    def kernel(x: Any, shift: int) -> Any:
        out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
        me = nl.program_id(0)
        mine = tuple(nl.ds(me * (4 - shift), 4) if d == dim else slice(None) for d in range(3))
        nl.store(out[mine], nl.load(x[mine]))
        return out

    x = random_array(8, 8, 8)
    assert np.array_equal(simulate(nki.jit(kernel)[2])(x, 0), x)
    with pytest.raises(KernelError, match="core-race"):
        simulate(nki.jit(kernel)[2])(x, 1)

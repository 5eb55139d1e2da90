from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nxdi.errors import KernelError
from nxdi.kernels import simulate
from nxdi.kernels.sim.schedule import schedule
from sim_kernels import nisa, nl, random_array


def in_turns(x: Any, num_buffers: int) -> Any:
    """Squares rows in 4 steps, in `num_buffers` places that are used again and again."""
    out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
    size = x.shape[1] * 4
    for step in range(4):
        address = (0, step % num_buffers * size)
        tile = nl.ndarray((128, x.shape[1]), x.dtype, buffer=nl.sbuf, address=address)
        rows = nl.ds(step * 128, 128)
        nisa.dma_copy(tile, x[rows, :])
        nisa.activation(tile, nl.square, tile)
        nisa.dma_copy(out[rows, :], tile)
    return out


@pytest.mark.parametrize("num_buffers", [1, 2, 4])
def test_a_place_is_used_again_when_what_was_there_has_been_used(num_buffers: int) -> None:
    x = random_array(512, 64)
    simulation = simulate(in_turns)
    assert np.array_equal(simulation(x, num_buffers), x * x)
    (slots,) = schedule(simulation.traces, simulation.machine)
    loads, stores = slots[0::3], slots[2::3]
    for step in range(num_buffers, 4):
        assert loads[step].start >= stores[step - num_buffers].done
    if num_buffers == 4:
        assert loads[3].start < stores[0].done
    assert simulation.report().sbuf_peak_bytes == num_buffers * 64 * 4


def test_a_part_that_is_overwritten_is_not_read() -> None:
    def kernel(reads_the_rest: bool) -> None:
        one = nl.ndarray((64, 4), nl.float32, address=(0, 0))
        other = nl.ndarray((32, 1), nl.float32, address=(32, 8))
        nisa.memset(one, 1.0)
        nisa.memset(other, 2.0)
        nl.square(one[0:32, :] if reads_the_rest else one)

    simulate(kernel)(True)
    with pytest.raises(KernelError, match=r"address.*manual-overlap"):
        simulate(kernel)(False)


def test_tensors_with_addresses_are_not_counted_twice() -> None:
    def kernel() -> None:
        for _ in range(3):
            nisa.memset(nl.ndarray((128, 40000), nl.float32, address=(0, 0)), 1.0)

    simulation = simulate(kernel, numerics="shapes")
    simulation()
    assert simulation.report().sbuf_peak_bytes == 160000

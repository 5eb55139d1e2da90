"""Laws of the kernel simulator: views are NumPy's, casts are nearest, schedules are possible."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nxdi.kernels import simulate
from nxdi.kernels.sim.dtypes import DTYPES, Precise
from nxdi.kernels.sim.enums import engine
from nxdi.kernels.sim.schedule import schedule
from sim_kernels import nisa, nl, stored

FLOATS = ("float16", "bfloat16", "tfloat32", "float8_e4m3", "float8_e4m3fn", "float8_e5m2")
SHAPE = (8, 4, 6)


@st.composite
def slices(draw: Any) -> tuple[slice, ...]:
    found = []
    for size in SHAPE:
        start = draw(st.integers(0, size - 1))
        stop = draw(st.integers(start + 1, size))
        found.append(slice(start, stop, draw(st.integers(1, 3))))
    return tuple(found)


@settings(max_examples=50, deadline=None)
@given(first=slices(), swaps=st.booleans(), dtype=st.sampled_from(["float32", "int32", "uint8"]))
def test_views_are_those_of_numpy(first: tuple[slice, ...], swaps: bool, dtype: str) -> None:
    def kernel(x: Any) -> Any:
        view = nl.load(x)[first]
        return stored(view.permute((0, 2, 1)) if swaps else view)

    x = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)
    expected = x[first].transpose(0, 2, 1) if swaps else x[first]
    assert np.array_equal(simulate(kernel)(x), expected)


@settings(max_examples=300, deadline=None)
@given(value=st.floats(-60000, 60000, width=32), name=st.sampled_from(FLOATS))
def test_a_cast_gives_a_nearest_number_and_stays(value: float, name: str) -> None:
    dtype, numerics = DTYPES[name], Precise()
    exact = np.array([value], np.float32)
    bits = numerics.encode(dtype, exact)
    result = numerics.decode(dtype, bits)
    again = numerics.encode(dtype, result)
    assert np.array_equal(bits, again)
    if dtype.is_float8:
        every = numerics.decode(dtype, np.arange(256, dtype=np.uint8))
        every = every[np.isfinite(every)]
        assert np.abs(result - exact).min() == np.abs(every - exact).min()


@st.composite
def programs(draw: Any) -> list[tuple[str, int, int, int]]:
    ops = st.sampled_from(["add", "exp", "copy", "load", "matmul"])
    tile = st.integers(0, 3)
    return draw(st.lists(st.tuples(ops, tile, tile, tile), min_size=1, max_size=25))


@settings(max_examples=50, deadline=None)
@given(steps=programs(), target=st.sampled_from(["gen2", "gen3", "gen4"]))
def test_schedules_are_possible(steps: list[tuple[str, int, int, int]], target: str) -> None:
    def kernel(x: Any) -> None:
        tiles = [nl.load(x) for _ in range(4)]
        for op, dst, one, other in steps:
            if op == "load":
                nisa.dma_copy(tiles[dst], x)
            elif op == "matmul":
                product = nl.ndarray((128, 128), nl.float32, buffer=nl.psum)
                nisa.nc_matmul(product, tiles[one], tiles[other])
                nisa.tensor_copy(tiles[dst], product)
            elif op == "add":
                nisa.tensor_tensor(tiles[dst], tiles[one], tiles[other], nl.add)
            else:
                nisa.activation(tiles[dst], getattr(nl, op), tiles[one])

    simulation = simulate(kernel, target=target, numerics="shapes")
    simulation(np.zeros((128, 128), np.float32))
    (slots,) = schedule(simulation.traces, simulation.machine)
    assert all(slot.done >= slot.ended > slot.start for slot in slots)
    for slot in slots:
        assert all(slot.start >= slots[number].done for number in slot.instruction.after)
    for on in engine:
        own = [slot for slot in slots if slot.instruction.engine is on]
        if on is not engine.dma:
            assert all(a.ended <= b.start for a, b in pairwise(own))

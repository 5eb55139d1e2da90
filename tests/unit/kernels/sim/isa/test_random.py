from __future__ import annotations

from typing import Any

import numpy as np

from nxdi.kernels import simulate
from sim_kernels import filled, nisa, nl, random_array, stored


def drawn(number: int) -> Any:
    tile = nl.ndarray((128, number), nl.uint32)
    nisa.rng(tile)
    return tile


def test_random_bits_are_those_of_xorwow() -> None:
    """The example of the paper: its initial state, and the recurrence in plain integers."""
    state = [123456789, 362436069, 521288629, 88675123, 5783321, 6615241]

    def kernel(seeds: Any) -> Any:
        nisa.rand_set_state(nl.load(seeds))
        tile = nl.ndarray((1, 5), nl.uint32)
        nisa.rng(tile, engine=nisa.engine.gpsimd)
        return stored(tile)

    result = simulate(kernel)(np.array([state], np.uint32))
    x, y, z, w, v, d = state
    for number in result[0]:
        t = x ^ (x >> 2)
        x, y, z, w = y, z, w, v
        v = (v ^ (v << 4) ^ t ^ (t << 1)) % 2**32
        d = (d + 362437) % 2**32
        assert number == (v + d) % 2**32


def test_a_seed_repeats_the_numbers() -> None:
    def kernel() -> Any:
        parts = []
        for seed in (7, 7, 8):
            nisa.set_rng_seed(filled(1, 1, dtype=nl.uint32, value=seed))
            parts.append(stored(drawn(9)))
        return tuple(parts)

    first, again, other = simulate(kernel)()
    assert np.array_equal(first, again)
    assert (first != other).mean() > 0.99
    assert np.unique(first).size == first.size


def test_a_state_that_was_kept_continues_where_it_was() -> None:
    def kernel() -> Any:
        state = nl.ndarray((128, 24), nl.uint32)
        nisa.rand_get_state(state, engine=nisa.engine.vector)
        first = stored(drawn(6))
        nisa.rand_set_state(state, engine=nisa.engine.vector)
        return first, stored(drawn(6)), stored(drawn(6))

    first, again, after = simulate(kernel, target="gen4")()
    assert np.array_equal(first, again)
    assert not np.array_equal(first, after)


def test_uniform_numbers_fill_their_range() -> None:
    def kernel() -> Any:
        tile = nl.ndarray((128, 512), nl.float32)
        nisa.rand2(tile, -1.0, filled(128, 1, value=3))
        return stored(tile)

    result = simulate(kernel, target="gen4")()
    assert -1 <= result.min() < -0.99
    assert 2.99 < result.max() <= 3
    assert abs(result.mean() - 1) < 0.02  # five standard deviations of the mean


def test_dropout_keeps_the_rest_as_it_is() -> None:
    def kernel(x: Any) -> Any:
        tile, result = nl.load(x), nl.ndarray(x.shape, x.dtype)
        nisa.dropout(result, tile, 0.25)
        return stored(result)

    x = random_array(128, 256)
    result = simulate(kernel)(x)
    assert ((result == 0) | (result == x)).all()
    assert abs((result == 0).mean() - 0.25) < 0.02


def test_functions_of_the_language() -> None:
    def kernel() -> Any:
        nl.random_seed(filled(1, 1, dtype=nl.int32, value=3))
        tile = nl.rand((128, 256), nl.float32)
        return stored(tile), stored(nl.dropout(tile, 0.5))

    numbers, dropped = simulate(kernel, target="gen2")()
    assert 0 <= numbers.min() < 0.01
    assert 0.99 < numbers.max() < 1
    assert abs((dropped == 0).mean() - 0.5) < 0.02

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nxdi.kernels import simulate
from sim_kernels import filled, nisa, nl, random_array, stored


@pytest.mark.parametrize("engine", ["vector", "scalar", "gpsimd"])
def test_a_copy_of_equal_dtypes_keeps_bits(engine: str) -> None:
    def kernel(x: Any) -> Any:
        result = nl.ndarray(x.shape, x.dtype)
        nisa.tensor_copy(result, nl.load(x), engine=nisa.engine[engine])
        return stored(result)

    x = np.array([[16777217, -5]], np.int32)
    assert np.array_equal(simulate(kernel)(x), x)


def test_a_predicate_leaves_the_other_elements() -> None:
    def kernel(x: Any, mask: Any, is_reversed: bool) -> Any:
        tile = filled(*x.shape, value=7)
        nisa.tensor_copy_predicated(tile, nl.load(x), nl.load(mask), reverse_pred=is_reversed)
        nisa.tensor_copy_predicated(tile[:, 0:1], 3.0, nl.load(mask)[:, 0:1])
        return stored(tile)

    x, mask = random_array(8, 16), (random_array(8, 16, seed=1) > 0).astype(np.uint8)
    for is_reversed in (False, True):
        expected = np.where((mask == 1) ^ is_reversed, x, np.float32(7))
        expected[mask[:, 0] == 1, 0] = 3
        assert np.array_equal(simulate(kernel)(x, mask, is_reversed), expected)


def test_what_a_predicate_leaves_stays_unwritten() -> None:
    def kernel(x: Any, mask: Any) -> Any:
        tile = nl.ndarray(x.shape, x.dtype)
        nisa.tensor_copy_predicated(tile, nl.load(x), nl.load(mask))
        return stored(tile)

    x, mask = random_array(8, 16), np.ones((8, 16), np.uint8)
    assert np.array_equal(simulate(kernel)(x, mask), x)
    mask[3, 5] = 0
    with pytest.raises(ValueError, match=r"1 of 128 elements .* first at \(3, 5\)"):
        simulate(kernel)(x, mask)


def test_a_shuffle_within_32_partitions() -> None:
    mask = [31, 255, *range(30)]

    def kernel(x: Any) -> Any:
        tile = filled(64, 4, value=9)
        nisa.nc_stream_shuffle(tile, nl.load(x), mask)
        return stored(tile)

    x = random_array(64, 4)
    expected = np.concatenate([x[31:32], np.full((1, 4), 9, np.float32), x[:30]])
    result = simulate(kernel)(x)
    assert np.array_equal(result[:32], expected)
    assert np.array_equal(result[32:33], x[63:64])


def test_memset_rounds_to_the_dtype() -> None:
    def kernel() -> Any:
        return stored(filled(4, 4, dtype=nl.bfloat16, value=1.001))

    assert (simulate(kernel)() == 1.0).all()

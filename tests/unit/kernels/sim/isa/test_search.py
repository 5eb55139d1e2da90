from __future__ import annotations

from typing import Any

import numpy as np

from nxdi.kernels import simulate
from sim_kernels import nisa, nl, random_array, stored


def test_the_largest_eight_in_descending_order() -> None:
    def kernel(x: Any) -> Any:
        top, at = nl.ndarray((16, 8), x.dtype), nl.ndarray((16, 8), nl.uint32)
        tile = nl.load(x)
        nisa.max8(top, tile)
        nisa.nc_find_index8(at, tile, top)
        return stored(top), stored(at)

    x = random_array(16, 100)
    top, at = simulate(kernel)(x)
    assert np.array_equal(top, -np.sort(-x, axis=1)[:, :8])
    assert np.array_equal(np.take_along_axis(x, at.astype(np.int64), axis=1), top)


def test_equal_values_are_found_one_after_the_other_and_misses_are_all_ones() -> None:
    def kernel(x: Any, wanted: Any) -> Any:
        at = nl.ndarray((1, 8), nl.uint16)
        nisa.nc_find_index8(at, nl.load(x), nl.load(wanted))
        return stored(at)

    x = np.array([[5, 1, 5, 2, 5, 3, 4, 0]], np.float32)
    wanted = np.array([[5, 5, 9, 1, 5, 5, 0, 3]], np.float32)
    assert simulate(kernel)(x, wanted).tolist() == [[0, 2, 65535, 1, 4, 65535, 7, 5]]


def test_matches_are_replaced_from_the_last_value_on() -> None:
    def kernel(x: Any, wanted: Any) -> Any:
        tile, at = nl.load(x), nl.ndarray((1, 8), nl.uint32)
        nisa.nc_match_replace8(tile, tile, nl.load(wanted), -1.0, dst_idx=at)
        return stored(tile), stored(at)

    x = np.array([[5, 1, 5, 2, 5, 3, 4, 0]], np.float32)
    wanted = np.array([[5, 5, 9, 1, 8, 7, 6, 3]], np.float32)
    tile, at = simulate(kernel)(x, wanted)
    assert tile.tolist() == [[-1, -1, -1, 2, 5, -1, 4, 0]]
    missing = 2**32 - 1
    assert at.tolist() == [[2, 0, missing, 1, missing, missing, missing, 5]]

from __future__ import annotations

from typing import Any

import numpy as np

from nxdi.kernels import simulate
from nxdi.kernels.sim.isa.select import FP32_MIN
from sim_kernels import nisa, nl, random_array, stored
from tolerances import SUM_ORDER_FP32


def test_a_range_is_kept_and_its_maximum_found() -> None:
    def kernel(x: Any, low: Any, high: Any) -> Any:
        result, top = nl.ndarray(x.shape, x.dtype), nl.ndarray((8, 1), nl.float32)
        nisa.range_select(
            result,
            nl.load(x),
            nl.greater_equal,
            nl.less,
            nl.load(low),
            nl.load(high),
            reduce_res=top,
            range_start=10,
        )
        return stored(result), stored(top)

    x = random_array(8, 16)
    low, high = (np.arange(8, dtype=np.float32).reshape(8, 1) + n for n in (9, 14))
    result, top = simulate(kernel)(x, low, high)
    at = np.arange(10, 26)[None, :]
    expected = np.where((at >= low) & (at < high), x, np.float32(FP32_MIN))
    assert np.array_equal(result, expected)
    assert np.array_equal(top, expected.max(axis=1, keepdims=True))


def test_a_choice_by_predicate() -> None:
    def kernel(x: Any, mask: Any) -> Any:
        result = nl.ndarray(x.shape, x.dtype)
        nisa.select_reduce(result, nl.load(mask), nl.load(x), -5.0, reverse_pred=True)
        return stored(result)

    x, mask = random_array(8, 16), (random_array(8, 16, seed=1) > 0).astype(np.uint8)
    assert np.array_equal(simulate(kernel)(x, mask), np.where(mask, np.float32(-5), x))


def test_the_exponential_sums_from_a_start() -> None:
    def kernel(x: Any, top: Any) -> Any:
        tile, total = nl.load(x), nl.ndarray((8, 1), nl.float32)
        cmd = nisa.reduce_cmd.load_reduce
        nisa.exponential(tile, tile, nl.load(top), total, cmd, reduce_init=2.0)
        return stored(tile), stored(total)

    x = random_array(8, 16)
    top = x.max(axis=1, keepdims=True)
    tile, total = simulate(kernel, target="gen4")(x, top)
    assert np.array_equal(tile, np.exp(x - top))
    assert np.abs(total - tile.sum(axis=1, keepdims=True) - 2).max() < SUM_ORDER_FP32

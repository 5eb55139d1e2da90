from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nxdi.kernels import simulate
from sim_kernels import nisa, nl, random_array, stored
from tolerances import SUM_ORDER_FP32

F32 = np.float32
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / y,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "abs_max": lambda x, y: np.maximum(abs(x), abs(y)),
    "less": lambda x, y: (x < y).astype(F32),
    "greater_equal": lambda x, y: (x >= y).astype(F32),
    "logical_and": lambda x, y: ((x != 0) & (y != 0)).astype(F32),
}


@pytest.mark.parametrize("op", BINARY)
def test_tiles_with_tiles_and_columns(op: str) -> None:
    def kernel(x: Any, y: Any, column: Any) -> Any:
        one, other, edge = nl.load(x), nl.load(y), nl.load(column)
        both, left, right = (nl.ndarray(x.shape, x.dtype) for _ in range(3))
        nisa.tensor_tensor(both, one, other, getattr(nl, op))
        nisa.tensor_scalar(left, one, getattr(nl, op), edge)
        nisa.tensor_scalar(right, one, getattr(nl, op), edge, reverse0=True)
        return stored(both), stored(left), stored(right)

    x, y, column = random_array(8, 16), random_array(8, 16, seed=1), random_array(8, 1, seed=2)
    both, left, right = simulate(kernel)(x, y, column)
    assert np.array_equal(both, BINARY[op](x, y))
    assert np.array_equal(left, BINARY[op](x, column))
    assert np.array_equal(right, BINARY[op](column, x))


def test_arithmetic_on_short_types_is_float32() -> None:
    def kernel(x: Any) -> Any:
        tile, result = nl.load(x, dtype=nl.int8), nl.ndarray(x.shape, nl.int8)
        nisa.tensor_scalar(result, tile, nl.multiply, 3.0, op1=nl.subtract, operand1=0.5)
        return stored(result)

    x = np.array([[1.0, 2.0, 100.0]], F32)
    assert simulate(kernel)(x).tolist() == [[2, 6, 127]]


@pytest.mark.parametrize(("engine", "is_exact"), [("gpsimd", True), ("vector", False)])
def test_integers_of_32_bits_are_exact_on_gpsimd_only(engine: str, is_exact: bool) -> None:
    def kernel(x: Any) -> Any:
        tile = nl.load(x)
        nisa.tensor_tensor(tile, tile, tile, nl.add, engine=nisa.engine[engine])
        return stored(tile)

    x = np.array([[16777217, 5]], np.int32)
    assert (simulate(kernel)(x)[0, 0] == 2 * 16777217) is np.bool_(is_exact)


def test_bits() -> None:
    def kernel(x: Any) -> Any:
        tile, shifted = nl.load(x), nl.ndarray(x.shape, x.dtype)
        nisa.tensor_scalar(shifted, tile, nl.left_shift, 2, op1=nl.bitwise_and, operand1=0xFF)
        return stored(shifted), stored(nl.bitwise_xor(tile, tile))

    x = np.array([[1, 77, 2**30 + 1]], np.uint32)
    shifted, zero = simulate(kernel)(x)
    assert np.array_equal(shifted, (x << 2) & 0xFF)
    assert not zero.any()


def test_scalar_then_tile() -> None:
    def kernel(x: Any, y: Any) -> Any:
        result = nl.ndarray(x.shape, x.dtype)
        nisa.scalar_tensor_tensor(
            result, nl.load(x), nl.multiply, 2.0, nl.subtract, nl.load(y), reverse1=True
        )
        return stored(result)

    x, y = random_array(8, 16), random_array(8, 16, seed=1)
    assert np.array_equal(simulate(kernel)(x, y), y - x * 2)


@pytest.mark.parametrize(
    ("axes", "shape"), [(2, (8, 4)), ((1, 2), (8, 1)), ([-1], (8, 4))], ids=str
)
def test_reductions_of_the_last_axes(axes: Any, shape: tuple[int, int]) -> None:
    def kernel(x: Any) -> Any:
        result = nl.ndarray(shape, x.dtype)
        nisa.tensor_reduce(result, nl.maximum, nl.load(x), axes, negate=True)
        return stored(result)

    x = random_array(8, 4, 5)
    assert np.array_equal(simulate(kernel)(x), -x.reshape(*shape, -1).max(axis=2))


def test_a_reduction_continues_in_the_accumulator() -> None:
    def kernel(x: Any) -> Any:
        tile, total = nl.load(x), nl.ndarray((8, 1), nl.float32)
        for part, cmd in ((0, nisa.reduce_cmd.reset_reduce), (1, nisa.reduce_cmd.reduce)):
            half = tile[:, nl.ds(part * 8, 8)]
            nisa.tensor_scalar_reduce(half, half, nl.multiply, 2.0, nl.add, total, reduce_cmd=cmd)
        return stored(tile), stored(total)

    x = random_array(8, 16)
    tile, total = simulate(kernel)(x)
    assert np.array_equal(tile, x * 2)
    assert np.abs(total - (x * 2).sum(axis=1, keepdims=True)).max() < SUM_ORDER_FP32


def test_a_scan_is_a_recurrence() -> None:
    def kernel(x: Any, y: Any) -> Any:
        result = nl.ndarray(x.shape, x.dtype)
        nisa.tensor_tensor_scan(result, nl.load(x), nl.load(y), 0.5, nl.multiply, nl.add)
        return stored(result)

    x, y = random_array(4, 32), random_array(4, 32, seed=1)
    expected, state = np.empty_like(x), np.full(4, 0.5, F32)
    for at in range(32):
        state = x[:, at] * state + y[:, at]
        expected[:, at] = state
    assert np.array_equal(simulate(kernel)(x, y), expected)


def test_a_running_sum() -> None:
    def kernel(x: Any) -> Any:
        tile = nl.load(x)
        for part, cmd in ((0, nisa.reduce_cmd.reset_reduce), (1, nisa.reduce_cmd.reduce)):
            half = tile[:, nl.ds(part * 8, 8)]
            nisa.tensor_scalar_cumulative(half, half, nl.add, nl.add, 1.0, reduce_cmd=cmd)
        return stored(tile)

    x = np.arange(32, dtype=F32).reshape(2, 16)
    assert np.array_equal(simulate(kernel)(x), np.cumsum(x + 1, axis=1))


def test_statistics_of_parts_add_up() -> None:
    def kernel(x: Any) -> Any:
        tile, parts = nl.load(x), nl.ndarray((8, 2, 6), nl.float32)
        for part in range(2):
            nisa.bn_stats(parts[:, part, :], tile[:, nl.ds(part * 15, 15)])
        result = nl.ndarray((8, 2), nl.float32)
        nisa.bn_aggr(result, parts)
        return stored(result)

    x = random_array(8, 30)
    expected = np.stack([x.mean(axis=1), x.var(axis=1)], axis=1)
    assert np.abs(simulate(kernel)(x) - expected).max() < SUM_ORDER_FP32


def test_reciprocal_is_a_division() -> None:
    def kernel(x: Any) -> Any:
        tile = nl.load(x)
        nisa.reciprocal(tile, tile)
        return stored(tile)

    x = random_array(8, 16)
    assert np.array_equal(simulate(kernel)(x), 1 / x)

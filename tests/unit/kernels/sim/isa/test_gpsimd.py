from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nxdi.errors import KernelError
from nxdi.kernels import simulate
from sim_kernels import nisa, nl, random_array, stored


def test_iota_is_an_affine_pattern() -> None:
    def kernel() -> Any:
        tile = nl.ndarray((8, 2, 3), nl.int32)
        nisa.iota(tile, [[100, 2], [1, 3]], offset=7, channel_multiplier=-10)
        return stored(tile)

    p, w, x = np.meshgrid(np.arange(8), np.arange(2), np.arange(3), indexing="ij")
    assert np.array_equal(simulate(kernel)(), 7 - 10 * p + 100 * w + x)


def test_a_causal_mask() -> None:
    def kernel(x: Any) -> Any:
        result = nl.ndarray(x.shape, x.dtype)
        nisa.affine_select(result, [[-1, 16]], 1, nl.load(x), -9.0, nl.greater_equal)
        return stored(result)

    x = random_array(16, 16)
    expected = np.where(np.tril(np.ones((16, 16), bool)), x, np.float32(-9))
    assert np.array_equal(simulate(kernel)(x), expected)


def test_gathers_by_16_partitions() -> None:
    def kernel(x: Any, index: Any) -> Any:
        result = nl.ndarray((32, 2 * 32), x.dtype)
        nisa.local_gather(result, nl.load(x), nl.load(index), num_elem_per_idx=2)
        return stored(result)

    x, index = random_array(32, 64), np.random.default_rng(0).integers(0, 62, (32, 2))
    expected = np.empty((32, 64), np.float32)
    for p in range(32):
        group = index[p - p % 16 : p - p % 16 + 16]
        flat = [at for column in range(2) for at in group[:, column]]
        expected[p] = [x[p, at + i] for at in flat for i in range(2)]
    assert np.array_equal(simulate(kernel)(x, index.astype(np.uint16)), expected)


def test_gathers_within_a_partition() -> None:
    def kernel(x: Any, index: Any) -> Any:
        result = nl.ndarray(index.shape, x.dtype)
        nisa.nc_n_gather(result, nl.load(x), nl.load(index))
        return stored(result)

    x, index = random_array(8, 64), np.random.default_rng(0).integers(0, 64, (8, 20))
    expected = np.take_along_axis(x, index, axis=1)
    assert np.array_equal(simulate(kernel)(x, index.astype(np.uint32)), expected)


def test_a_reduction_over_partitions() -> None:
    def kernel(x: Any) -> Any:
        result = nl.ndarray((1, 16), x.dtype)
        nisa.tensor_partition_reduce(result, nl.maximum, nl.load(x))
        return stored(result)

    x = random_array(64, 16)
    assert np.array_equal(simulate(kernel)(x), x.max(axis=0, keepdims=True))


def test_nonzero_elements_are_listed_in_every_sixteenth_partition() -> None:
    def kernel(x: Any) -> Any:
        result = nl.zeros((32, 9), nl.int32)
        nisa.nonzero_with_count(result, nl.load(x), index_offset=100)
        return stored(result)

    x = np.zeros((32, 8), np.float32)
    x[0, [1, 5]], x[16, 7], x[3, :] = 1, -2, 1
    result = simulate(kernel)(x)
    assert result[0].tolist() == [101, 105, -1, -1, -1, -1, -1, -1, 2]
    assert result[16].tolist() == [107, -1, -1, -1, -1, -1, -1, -1, 1]
    assert not result[1:16].any()


def test_bounds_of_segments() -> None:
    def kernel(x: Any) -> Any:
        result = nl.ndarray((1, 2, 8), nl.int32)
        nisa.sequence_bounds(result, nl.load(x))
        return stored(result)

    x = np.array([[1, 1, 1, 2, 3, 3, 0, 0]], np.int32)
    starts, ends = simulate(kernel)(x)[0]
    assert starts.tolist() == [0, 0, 0, 3, 4, 4, 8, 8]
    assert ends.tolist() == [3, 3, 3, 4, 6, 6, -1, -1]


def test_a_dynamic_offset_on_chip_stays_within_the_tensor() -> None:
    def kernel(x: Any, at: Any) -> Any:
        tile, result = nl.load(x), nl.ndarray((8, 4), x.dtype)
        start = nl.load(at)
        nisa.tensor_copy(result, tile.ap([[16, 8], [1, 4]], scalar_offset=start, indirect_dim=1))
        return stored(result)

    x = random_array(8, 16)
    assert np.array_equal(simulate(kernel)(x, np.array([[5]], np.int32)), x[:, 5:9])
    with pytest.raises(KernelError, match="indirect-range"):
        simulate(kernel)(x, np.array([[16]], np.int32))


@pytest.mark.parametrize(("n", "k"), [(42, 8), (160, 20), (8, 8)])
def test_the_largest_of_16_partitions(n: int, k: int) -> None:
    columns = -(-n // 16)

    def kernel(x: Any) -> Any:
        values, places = nl.ndarray((32, k), nl.bfloat16), nl.ndarray((32, k), nl.uint32)
        nisa.memset(values, 0.0)
        nisa.memset(places, 0)
        nisa.topk(values, places, nl.load(x, nl.bfloat16), n)
        return stored(values), stored(places)

    x = np.random.default_rng(0).permutation(256)[: 32 * columns] if n < 160 else None
    x = np.resize(np.arange(256.0), (32, columns)) if x is None else x.reshape(32, columns)
    values, places = simulate(kernel)(x.astype(np.float32))
    for first in (0, 16):
        snake = x[first : first + 16].T.reshape(-1)[:n]
        found = values[first : first + 16].T.reshape(-1)[:k]
        where = places[first : first + 16].T.reshape(-1)[:k]
        assert np.array_equal(found, np.sort(snake)[-k:])
        assert np.array_equal(snake[where], found)


def test_what_topk_does_not_write_cannot_be_read() -> None:
    def kernel(x: Any) -> Any:
        values, places = nl.ndarray((16, 20), nl.bfloat16), nl.ndarray((16, 20), nl.uint32)
        nisa.topk(values, places, nl.load(x, nl.bfloat16), 32)
        stored(values[:, 0:1])
        return stored(values[:, 0:2])

    with pytest.raises(KernelError, match="12 of 32 elements"):
        simulate(kernel)(random_array(16, 2))

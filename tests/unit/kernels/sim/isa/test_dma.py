from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nxdi.kernels import simulate
from sim_kernels import nisa, nl, random_array, stored


def test_a_copy_casts_through_float32() -> None:
    def kernel(x: Any) -> Any:
        return stored(nl.load(x, dtype=nl.int8))

    x = np.array([[0.5, 1.5, -200.0, 3.4]], np.float32)
    assert simulate(kernel)(x).tolist() == [[0, 2, -128, 3]]


def test_equal_dtypes_keep_their_bits() -> None:
    def kernel(x: Any) -> Any:
        return stored(nl.load(x))

    x = np.array([[2**31 - 1, -(2**31), 16777217]], np.int32)
    assert np.array_equal(simulate(kernel)(x), x)


def gather(x: Any, index: Any, skips: bool) -> Any:
    rows, width = index.shape[0], x.shape[1]
    places = nl.load(index)
    tile = nl.full((rows, width), -1.0, x.dtype)
    mode = nisa.oob_mode.skip if skips else nisa.oob_mode.error
    source = x.ap([[width, rows], [1, width]], vector_offset=places)
    nisa.dma_copy(tile, source, oob_mode=mode)
    return stored(tile)


def test_a_gather_takes_rows_by_index() -> None:
    x, index = random_array(64, 8), np.array([[3], [63], [3], [0]], np.int32)
    assert np.array_equal(simulate(gather)(x, index, False), x[index[:, 0]])


def test_a_gather_skips_what_is_out_of_range() -> None:
    x, index = random_array(64, 8), np.array([[3], [64], [-1], [0]], np.int32)
    result = simulate(gather)(x, index, True)
    assert np.array_equal(result[[0, 3]], x[[3, 0]])
    assert (result[[1, 2]] == -1).all()


def test_a_scatter_writes_rows_by_index() -> None:
    def kernel(x: Any, index: Any) -> Any:
        out = nl.zeros((16, 8), x.dtype, buffer=nl.shared_hbm)
        target = out.ap([[8, 4], [1, 8]], vector_offset=nl.load(index))
        nisa.dma_copy(target, nl.load(x))
        return out

    x, index = random_array(4, 8), np.array([[5], [2], [15], [0]], np.uint32)
    expected = np.zeros((16, 8), np.float32)
    expected[index[:, 0]] = x
    assert np.array_equal(simulate(kernel)(x, index), expected)


def test_a_scatter_leaves_other_rows_unwritten() -> None:
    def kernel(x: Any, index: Any) -> Any:
        out = nl.ndarray((16, 8), x.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(out.ap([[8, 4], [1, 8]], vector_offset=nl.load(index)), nl.load(x))
        return nl.load(out[0:3, :])

    index = np.array([[0], [1], [2], [3]], np.int32)
    simulate(lambda x, at: kernel(x, at) and x)(random_array(4, 8), index)
    with pytest.raises(ValueError, match="uninitialized-read"):
        simulate(kernel)(random_array(4, 8), index + 1)


def test_a_scalar_offset_moves_the_start() -> None:
    def kernel(x: Any, at: Any) -> Any:
        start = nl.load(at)
        tile = nl.ndarray((4, 8), x.dtype)
        nisa.dma_copy(tile, x.ap([[8, 4], [1, 8]], scalar_offset=start))
        return stored(tile)

    x = random_array(16, 8)
    assert np.array_equal(simulate(kernel)(x, np.array([[5]], np.int32)), x[5:9])


@pytest.mark.parametrize(
    ("shape", "axes"), [((32, 64), (1, 0)), ((4, 6, 8), (2, 1, 0)), ((4, 6, 2, 8), (3, 1, 2, 0))]
)
def test_transposes(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    def kernel(x: Any) -> Any:
        out = nl.ndarray(tuple(x.shape[a] for a in axes), x.dtype, buffer=nl.shared_hbm)
        nisa.dma_transpose(out, x, axes=axes)
        return out

    x = random_array(*shape).astype(np.float16)
    assert np.array_equal(simulate(kernel)(x), x.transpose(axes))


def test_sums_and_scatter_adds() -> None:
    def kernel(x: Any, y: Any, index: Any) -> Any:
        out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
        nisa.dma_compute(out, [x, y], nl.add)
        rows = out.ap([[8, 4], [1, 8]], vector_offset=nl.load(index))
        nisa.dma_compute(rows, [rows, nl.load(x[0:4, :])], nl.add)
        return out

    x, y, index = random_array(16, 8), random_array(16, 8, seed=1), np.array([[3], [0], [9], [1]])
    expected = x + y
    expected[index[:, 0]] += x[:4]
    assert np.array_equal(simulate(kernel)(x, y, index.astype(np.int32)), expected)

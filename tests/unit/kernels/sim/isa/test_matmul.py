from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nxdi.kernels import simulate
from sim_kernels import filled, nisa, nl, random_array, stored


def test_bfloat16_products_are_exact_in_float32() -> None:
    def kernel(one: Any, other: Any) -> Any:
        result = nl.ndarray((8, 16), nl.float32, buffer=nl.psum)
        nisa.nc_matmul(result, nl.load(one), nl.load(other))
        return stored(result)

    one, other = (torch.randint(-8, 8, (32, n)).bfloat16() for n in (8, 16))
    assert torch.equal(simulate(kernel)(one, other), one.float().T @ other.float())


@pytest.mark.parametrize(("accumulate", "expected"), [(None, 8), (True, 8), (False, 4)])
def test_a_second_matmul_adds_or_overwrites(accumulate: bool | None, expected: float) -> None:
    def kernel() -> Any:
        one, result = filled(4, 8), nl.ndarray((8, 8), nl.float32, buffer=nl.psum)
        nisa.nc_matmul(result, one, one)
        nisa.nc_matmul(result, one, one, accumulate=accumulate)
        return stored(result)

    assert (simulate(kernel)() == expected).all()


def test_the_first_matmul_overwrites_what_memset_wrote() -> None:
    def kernel() -> Any:
        one, result = filled(4, 8), filled(8, 8, buffer=nl.psum, value=100)
        nisa.nc_matmul(result, one, one)
        return stored(result)

    assert (simulate(kernel)() == 4).all()


def test_parts_of_a_bank_accumulate_apart() -> None:
    def kernel() -> Any:
        one, result = filled(4, 8), nl.ndarray((8, 16), nl.float32, buffer=nl.psum)
        for part in (0, 1, 1):
            nisa.nc_matmul(result[:, nl.ds(part * 8, 8)], one, one)
        return stored(result)

    assert simulate(kernel)()[0].tolist() == [4.0] * 8 + [8.0] * 8


def test_double_rows_contract_over_both() -> None:
    def kernel(one: Any, other: Any) -> Any:
        tiles = [nl.load(item, dtype=nl.float8_e4m3) for item in (one, other)]
        result = nl.ndarray((4, 6), nl.float32, buffer=nl.psum)
        nisa.nc_matmul(result, *tiles, perf_mode=nisa.matmul_perf_mode.double_row)
        return stored(result)

    generator = np.random.default_rng(0)
    one, other = (generator.integers(-8, 8, (16, 2, n)).astype(np.float32) for n in (4, 6))
    expected = np.einsum("kjm,kjn->mn", one, other)
    assert np.array_equal(simulate(kernel)(one, other), expected)


def test_tiles_of_the_array() -> None:
    def kernel(one: Any, other: Any) -> Any:
        left, right = nl.load(one), nl.load(other)
        result = nl.ndarray((32, 8), nl.float32, buffer=nl.psum)
        for row in range(4):
            part = nl.ds(row * 32, 32)
            nisa.nc_matmul(
                result,
                left[part, :],
                right[part, :],
                tile_position=(row * 32, 0),
                tile_size=(32, 32),
            )
        return stored(result)

    generator = np.random.default_rng(0)
    one, other = (generator.integers(-8, 8, (128, n)).astype(np.float32) for n in (32, 8))
    assert np.array_equal(simulate(kernel)(one, other), one.T @ other)


def test_gen4_writes_bfloat16() -> None:
    def kernel() -> Any:
        one, other = filled(4, 8), filled(4, 1024, value=1.01)
        result = nl.ndarray((8, 1024), nl.bfloat16, buffer=nl.psum)
        nisa.nc_matmul(result, one, other)
        return stored(result)

    assert simulate(kernel, target="gen4")()[0, 0] == torch.tensor(4.04).bfloat16().item()


@pytest.mark.parametrize(("shape", "engine"), [((128, 64), "tensor"), ((32, 16), "vector")])
def test_transposes_keep_bits(shape: tuple[int, int], engine: str) -> None:
    def kernel(x: Any) -> Any:
        buffer = nl.psum if engine == "tensor" else nl.sbuf
        turned = nl.ndarray(shape[::-1], x.dtype, buffer=buffer)
        nisa.nc_transpose(turned, nl.load(x), engine=nisa.engine[engine])
        return stored(turned)

    x = random_array(*shape)
    x[3, 5] = np.nan
    assert np.array_equal(simulate(kernel)(x), x.T, equal_nan=True)


def test_a_transpose_on_gen2_spreads_nan() -> None:
    def kernel(x: Any) -> Any:
        turned = nl.ndarray((8, 4), x.dtype, buffer=nl.psum)
        nisa.nc_transpose(turned, nl.load(x), engine=nisa.engine.tensor)
        return stored(turned)

    x = random_array(4, 8)
    x[1, 5] = np.nan
    assert np.isnan(simulate(kernel, target="gen2")(x)[5]).all()

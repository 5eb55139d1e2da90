from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nxdi.kernels import simulate
from nxdi.kernels.sim.dtypes import DTYPES, unpack
from sim_kernels import nisa, nl, random_array, stored


def product(one: Any, other: Any, kind: str) -> Any:
    """one[K, M, 4] . other[K, N, 4], quantized on the device."""
    packed = []
    for source in (one, other):
        tile = nl.load(source)
        rows, free = tile.shape[0], tile.shape[1] // 4
        values = nl.ndarray((rows, free), getattr(nl, kind))
        scales = nl.ndarray((rows if rows > 32 else 4, free), nl.uint8)
        nisa.quantize_mx(values, tile, scales)
        packed.append((values, scales))
    (left, left_scale), (right, right_scale) = packed
    result = nl.ndarray((left.shape[1], right.shape[1]), nl.float32, buffer=nl.psum)
    nisa.nc_matmul_mx(result, left, right, left_scale, right_scale)
    return stored(result)


@pytest.mark.parametrize("kind", ["float8_e4m3fn_x4", "float8_e5m2_x4"])
@pytest.mark.parametrize("rows", [32, 128])
def test_small_integers_are_multiplied_exactly(kind: str, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (
        (torch.randint(-2, 3, (rows, n * 4), generator=generator) * 2.0**7).bfloat16()
        for n in (8, 6)
    )
    other[:8, :4] = 0
    result = simulate(product, target="gen4")(one, other, kind)
    left, right = (item.float().reshape(rows, -1, 4) for item in (one, other))
    assert torch.equal(result, torch.einsum("kmi,kni->mn", left, right))


def test_the_scale_follows_the_largest_of_eight_partitions_by_four() -> None:
    def kernel(x: Any) -> Any:
        values = nl.ndarray((32, 2), nl.float8_e4m3fn_x4)
        scales = nl.ndarray((4, 2), nl.uint8)
        nisa.quantize_mx(values, nl.load(x, dtype=nl.bfloat16), scales)
        return stored(scales)

    x = np.zeros((32, 8), np.float32)
    x[3, 2], x[9, 7] = 3.0, -0.25
    # floor(log2 3) - 7 + 127, floor(log2 1/4) - 7 + 127; groups of zeros have 2**-127.
    assert simulate(kernel, target="gen4")(x).tolist() == [[121, 0], [0, 118], [0, 0], [0, 0]]


def test_errors_are_those_of_three_bits() -> None:
    one, other = (torch.from_numpy(random_array(128, n, seed=n)).bfloat16() for n in (32, 64))
    result = simulate(product, target="gen4")(one, other, "float8_e4m3fn_x4")
    left, right = (item.float().reshape(128, -1, 4) for item in (one, other))
    exact = torch.einsum("kmi,kni->mn", left, right)
    sizes = torch.einsum("kmi,kni->mn", left.abs(), right.abs())
    # Half a unit of three bits on either side.
    assert ((result - exact).abs() <= sizes * 2 * 2.0**-4).all()


def test_float4_has_sixteen_numbers() -> None:
    bits = np.array([0x3210, 0x7654, 0xBA98, 0xFEDC], np.uint16)
    values = unpack(DTYPES["float4_e2m1fn_x4"], bits).reshape(-1)
    assert values.tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]

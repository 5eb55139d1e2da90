from __future__ import annotations

import pytest
import torch

from nki_calls import check_portable
from nxdi.kernels import simulate
from nxdi.kernels.nki import load_kernels
from tolerances import LINEAR_FP32

kernels = load_kernels("matmul")


@pytest.mark.parametrize("target", ["gen2", "gen3", "gen4"])
@pytest.mark.parametrize(
    ("rows", "hidden", "columns"), [(1, 128, 64), (300, 256, 512), (130, 384, 1600)]
)
def test_it_equals_torch(target: str, rows: int, hidden: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, hidden, generator=generator).bfloat16()
    w = torch.randn(hidden, columns, generator=generator).bfloat16()
    assert kernels.supports(kernels.Call(x.shape, w.shape, x.dtype)) is None
    result = simulate(kernels.matmul, target=target)(x, w)
    exact = x.double() @ w.double()
    sizes = x.double().abs() @ w.double().abs()
    # Sums in float32, then half a unit of bfloat16.
    assert ((result - exact).abs() <= sizes * LINEAR_FP32 + exact.abs() * 2.0**-8).all()


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "dtype", "reason"),
    [
        ((2, 128), (64, 8), torch.bfloat16, "no [T, H]"),
        ((2, 100), (100, 8), torch.bfloat16, "no multiple"),
        ((2, 128), (128, 8), torch.float32, "16 bits"),
        ((2, 32768), (32768, 8), torch.bfloat16, "do not fit"),
    ],
)
def test_it_says_what_it_does_not_serve(
    x_shape: tuple[int, int], w_shape: tuple[int, int], dtype: torch.dtype, reason: str
) -> None:
    assert reason in kernels.supports(kernels.Call(x_shape, w_shape, dtype))


def test_prefill_is_bound_by_products_and_decode_by_memory() -> None:
    w = torch.empty(4096, 2048, dtype=torch.bfloat16, device="meta")
    reports = []
    for rows in (512, 1):
        simulation = simulate(kernels.matmul, numerics="shapes")
        simulation(torch.empty(rows, 4096, dtype=torch.bfloat16, device="meta"), w)
        reports.append(simulation.report())
    prefill, decode = reports
    assert prefill.busy["tensor"] > 0.8
    assert decode.bound_by == "dma"
    assert decode.dma_gb_per_s > 0.7 * decode.memory_gb_per_s


def test_it_is_portable() -> None:
    check_portable(kernels)
    check_portable(load_kernels("tiles"))

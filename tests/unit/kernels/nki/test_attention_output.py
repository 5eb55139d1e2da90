from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from nxdi.kernels import lint, measure_coverage, simulate
from nxdi.kernels.nki import load_kernels
from tolerances import NKI_BF16, NKI_FP32

kernels = load_kernels("attention_output")
PARTS = ["load_bias", "load_turned", "multiply", "store_sums"]


def arguments_of(sizes: tuple[int, int, int], has_bias: bool, dtype: torch.dtype) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    rows, hidden, columns = sizes
    shapes = [(rows, hidden), (hidden, columns), (1, columns)]
    x, w, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return [x, w, bias if has_bias else None]


def drawn(number: int) -> list[Any]:
    """Calls of every generation and dtype; sizes are mostly ragged."""
    choice = random.Random(0)
    return [
        (
            (
                choice.choice([1, 8, 100, 129, 300, 530]),
                choice.choice([16, 64, 128, 200, 384]),
                choice.choice([32, 100, 512, 700]),
            ),
            choice.random() < 0.5,
            (torch.bfloat16, torch.float32, torch.float16, torch.float32)[at % 4],
            ("gen2", "gen3", "gen4")[at % 3],
        )
        for at in range(number)
    ]


@pytest.mark.parametrize(("sizes", "has_bias", "dtype", "target"), drawn(50))
def test_it_equals_its_reference(
    sizes: tuple[int, int, int], has_bias: bool, dtype: torch.dtype, target: str
) -> None:
    arguments = arguments_of(sizes, has_bias, dtype)
    assert kernels.supports(kernels.Call(sizes[:2], sizes[1:], dtype)) is None
    result = simulate(kernels.attention_output, target=target)(*arguments)
    expected = kernels.reference(*(x if x is None else x.double() for x in arguments))
    bound = NKI_FP32 if dtype is torch.float32 else NKI_BF16
    assert (result - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "dtype", "reason"),
    [
        ((2, 128), (64, 8), torch.bfloat16, "no [T, H]"),
        ((2, 3, 128), (128, 8), torch.bfloat16, "no [T, H]"),
        ((2, 128), (128, 8), torch.int8, "16 or 32 bits"),
        ((2, 32768), (32768, 8), torch.bfloat16, "do not fit"),
    ],
)
def test_it_says_what_it_does_not_serve(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], dtype: torch.dtype, reason: str
) -> None:
    assert reason in kernels.supports(kernels.Call(x_shape, w_shape, dtype))


def test_prefill_is_bound_by_products_and_decode_by_memory() -> None:
    w = torch.empty(1024, 8192, dtype=torch.bfloat16, device="meta")
    reports = []
    for rows in (1024, 1):
        simulation = simulate(kernels.attention_output, numerics="shapes")
        simulation(torch.empty(rows, 1024, dtype=torch.bfloat16, device="meta"), w)
        reports.append(simulation.report())
    prefill, decode = reports
    # The tensor engine sustains three quarters of its documented rate.
    assert prefill.busy["tensor"] > 0.9
    assert decode.bound_by == "dma"
    assert decode.dma_gb_per_s >= 0.85 * decode.memory_gb_per_s


def test_every_line_runs_and_is_portable() -> None:
    functions = [kernels.attention_output, *(getattr(kernels, name) for name in PARTS)]
    with measure_coverage(kernels.attention_output) as coverage:
        simulate(kernels.attention_output)(*arguments_of((130, 140, 70), True, torch.float32))
    assert coverage.missing_lines == []
    assert [finding for function in functions for finding in lint(function)] == []

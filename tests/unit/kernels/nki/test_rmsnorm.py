from __future__ import annotations

import pytest
import torch

from nxdi.errors import KernelError
from nxdi.kernels import lint, measure_coverage, simulate
from nxdi.kernels.nki import load_kernels

kernels = load_kernels("rmsnorm")


@pytest.mark.parametrize("target", ["gen2", "gen3", "gen4"])
@pytest.mark.parametrize(("rows", "hidden"), [(1, 64), (130, 512), (7, 2048)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_equals_torch(target: str, rows: int, hidden: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(rows, hidden, generator=generator) * 3).to(dtype)
    gamma = torch.randn(1, hidden, generator=generator).to(dtype)
    assert kernels.supports(kernels.Call((rows, hidden), dtype, (1, hidden))) is None
    result = simulate(kernels.rmsnorm, target=target)(x, gamma)
    exact = kernels.reference(x.double(), gamma)
    # Half a unit of the last place each, of numbers that differ by some units of float32.
    unit = 2.0**-8 if dtype is torch.bfloat16 else 2.0**-20
    assert ((result - exact).abs() <= exact.abs() * unit + 1e-30).all()


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (kernels.Call((2, 3, 64), torch.float32, (1, 64)), "the kernel takes"),
        (kernels.Call((2, 64), torch.float32, (64,)), "the kernel takes"),
        (kernels.Call((2, 600), torch.float32, (1, 600)), "no multiple"),
        (kernels.Call((2, 64), torch.int32, (1, 64)), "no float"),
        (kernels.Call((2, 16384), torch.float32, (1, 16384)), "does not fit"),
    ],
)
def test_it_says_what_it_does_not_serve(call: object, reason: str) -> None:
    assert reason in kernels.supports(call)


def test_the_largest_row_it_serves_fits_every_machine() -> None:
    hidden = max(
        size
        for size in range(512, 32768, 512)
        if kernels.supports(kernels.Call((256, size), torch.float32, (1, size))) is None
    )
    fits, wide = (
        (torch.empty(512, size, device="meta"), torch.empty(1, size, device="meta"))
        for size in (hidden, hidden * 3)
    )
    simulation = simulate(kernels.rmsnorm, target="gen2", numerics="shapes")
    simulation(*fits)
    with pytest.raises(KernelError, match="sbuf"):
        simulation(*wide)


def test_every_line_runs_and_is_portable() -> None:
    with measure_coverage(kernels.rmsnorm) as coverage:
        simulate(kernels.rmsnorm)(torch.ones(130, 64), torch.ones(1, 64))
    assert coverage.missing_lines == []
    assert lint(kernels.rmsnorm) == []

from __future__ import annotations

from random import Random

import pytest
import torch

from nki_calls import GENERATIONS, Drawn, check_drawn, check_portable, normal
from nxdi.errors import KernelError
from nxdi.kernels import measure_coverage, simulate
from nxdi.kernels.nki import load_kernels
from tolerances import NKI

kernels = load_kernels("rmsnorm")


def draw(random: Random) -> Drawn:
    rows, hidden = random.choice([1, 3, 128, 129]), random.randint(1, 200)
    dtype = random.choice([torch.bfloat16, torch.float16, torch.float32])
    x = normal(random, rows, hidden, dtype=dtype, scale=3)
    gamma = normal(random, 1, hidden, dtype=random.choice([dtype, torch.float32]))
    return Drawn(kernels.Call((rows, hidden), dtype, (1, hidden)), (x, gamma), NKI[dtype])


@pytest.mark.parametrize("target", GENERATIONS)
def test_it_equals_its_reference(target: str) -> None:
    check_drawn(kernels, kernels.rmsnorm, draw, target)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (kernels.Call((2, 3, 64), torch.float32, (1, 64)), "the kernel takes"),
        (kernels.Call((2, 64), torch.float32, (64,)), "the kernel takes"),
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
    check_portable(kernels)

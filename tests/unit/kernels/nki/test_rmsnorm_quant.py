from __future__ import annotations

from random import Random

import pytest
import torch

from nki_calls import GENERATIONS, Drawn, check_drawn, check_portable, normal
from nxdi.kernels import simulate
from nxdi.kernels.nki import load_kernels
from tolerances import NKI

kernels = load_kernels("rmsnorm_quant")


def draw(random: Random) -> Drawn:
    rows, hidden = random.choice([1, 3, 128, 129]), random.randint(1, 200)
    dtype = random.choice([torch.bfloat16, torch.float32])
    as_int8 = random.random() < 0.5
    x = normal(random, rows, hidden, dtype=dtype, scale=10 ** random.uniform(-3, 3))
    gamma = normal(random, 1, hidden, dtype=dtype)
    call = kernels.Call(tuple(x.shape), dtype, tuple(gamma.shape))
    tolerance = NKI[torch.int8 if as_int8 else torch.float8_e4m3fn]
    return Drawn(call, (x, gamma), tolerance, {"as_int8": as_int8})


@pytest.mark.parametrize("target", GENERATIONS)
def test_it_equals_its_reference(target: str) -> None:
    check_drawn(kernels, kernels.rmsnorm_quant, draw, target)


@pytest.mark.parametrize("as_int8", [False, True])
def test_values_times_scales_are_the_norm(as_int8: bool) -> None:
    x, gamma = normal(Random(0), 64, 96), normal(Random(1), 1, 96)
    values, scales = simulate(kernels.rmsnorm_quant)(x, gamma, as_int8=as_int8)
    exact = torch.rms_norm(x, (96,), gamma[0], 1e-6)
    # Half a step: of 127 equal ones, or of 8 between a power of two and the next.
    half_step = scales / 2 if as_int8 else exact.abs() / 16 + scales / 512
    assert ((values.float() * scales - exact).abs() <= half_step * (1 + NKI[torch.float32])).all()


@pytest.mark.parametrize("as_int8", [False, True])
def test_a_row_of_zeros_stays_zero(as_int8: bool) -> None:
    x, gamma = torch.zeros(2, 8), torch.ones(1, 8)
    x[1] = torch.arange(8)
    values, scales = simulate(kernels.rmsnorm_quant)(x, gamma, as_int8=as_int8)
    assert (values[0] == 0).all()
    assert values[1, 7] == (127 if as_int8 else 240)
    assert scales[0] < 1e-10


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (kernels.Call((2, 3, 64), torch.float32, (1, 64)), "the kernel takes"),
        (kernels.Call((2, 64), torch.float32, (64,)), "the kernel takes"),
        (kernels.Call((2, 64), torch.float16, (1, 64)), "neither"),
        (kernels.Call((2, 16384), torch.float32, (1, 16384)), "does not fit"),
    ],
)
def test_it_says_what_it_does_not_serve(call: object, reason: str) -> None:
    assert reason in kernels.supports(call)


def test_it_is_portable() -> None:
    check_portable(kernels)

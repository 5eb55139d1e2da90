from __future__ import annotations

import pytest
import torch

from nxdi.modules.custom_calls import CustomRMSNorm
from nxdi.modules.norm import RMSNorm, UnweightedRMSNorm
from tiny_modules import drawn
from tolerances import SUM_ORDER_FP32


def make_norm(size: int, eps: float, dtype: torch.dtype = torch.float32) -> RMSNorm:
    norm = RMSNorm(size, eps, dtype)
    norm.weight.copy_(1 + 0.3 * drawn(size, seed=1))
    return norm


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_against_the_formula(eps: float) -> None:
    norm, x = make_norm(12, eps), drawn(3, 5, 12)
    wide = x.double()
    rms = (wide.pow(2).sum(-1, keepdim=True) / 12 + eps).sqrt()
    expected = wide / rms * norm.weight.double()
    torch.testing.assert_close(norm(x).double(), expected, rtol=SUM_ORDER_FP32, atol=SUM_ORDER_FP32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_weight(dtype: torch.dtype) -> None:
    norm, x = RMSNorm(12, 0.1, dtype), drawn(3, 5, 12).to(dtype)
    norm.weight.fill_(1)
    assert torch.equal(UnweightedRMSNorm(0.1)(x), norm(x))
    assert UnweightedRMSNorm().state_dict() == {}


def test_arithmetic_is_float32_for_16_bit_inputs() -> None:
    """100 squared times 700 is beyond float16."""
    norm = make_norm(700, 1e-6, torch.float16)
    x = torch.full((1, 700), 100.0, dtype=torch.float16)
    got = norm(x)
    assert got.dtype == torch.float16
    torch.testing.assert_close(got[0], norm.weight, rtol=0, atol=2**-10)


def test_16_bit_weights_keep_the_dtype_of_the_input() -> None:
    assert make_norm(12, 1e-6, torch.bfloat16)(drawn(2, 12)).dtype == torch.float32


def test_zero_stays_zero() -> None:
    assert torch.equal(make_norm(4, 1e-6)(torch.zeros(2, 4)), torch.zeros(2, 4))


def test_the_name_it_has_in_nxdi() -> None:
    assert CustomRMSNorm is RMSNorm

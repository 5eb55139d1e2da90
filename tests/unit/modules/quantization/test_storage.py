"""Values of four bits and scales of eight, against those who define them."""

from __future__ import annotations

import pytest
import torch
from transformers.integrations.mxfp4 import FP4_VALUES

from nxdi.kernels.reference.int4 import nibbles
from nxdi.modules.quantization.storage import E2M1, E8M0Scales, Int4, pack

ALL_BYTES = torch.arange(256, dtype=torch.uint8)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_two_numbers_to_a_byte(dim: int) -> None:
    bits = torch.randint(0, 16, (4, 6), generator=torch.Generator().manual_seed(0))
    packed = pack(bits, dim)
    assert packed.dtype is torch.uint8
    assert packed.numel() == bits.numel() // 2
    assert torch.equal(nibbles(packed, dim), bits.int())


def test_the_first_is_in_the_lower_bits() -> None:
    assert nibbles(torch.tensor([0x21], dtype=torch.uint8), 0).tolist() == [1, 2]


def test_all_integers_of_four_bits() -> None:
    values = Int4().widen(ALL_BYTES, 0)
    numbers = list(range(8)) + list(range(-8, 0))
    assert values.view(-1, 2).tolist() == [
        [numbers[byte & 15], numbers[byte >> 4]] for byte in range(256)
    ]
    assert torch.equal(Int4().narrow(values, 0), ALL_BYTES)


def test_all_floats_of_four_bits() -> None:
    values = E2M1().widen(ALL_BYTES, 0).view(-1, 2)
    table = torch.tensor(FP4_VALUES)
    expected = torch.stack([table[ALL_BYTES.int() & 15], table[ALL_BYTES.int() >> 4]], 1)
    assert torch.equal(values, expected)
    assert torch.equal(values.signbit(), expected.signbit())
    assert torch.equal(E2M1().narrow(values.flatten(), 0), ALL_BYTES)


def test_floats_of_four_bits_are_rounded_to_the_nearest() -> None:
    draw = torch.Generator().manual_seed(0)
    middles = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    values = torch.cat([middles, -middles, 6 * (2 * torch.rand(240, generator=draw) - 1)])
    found = E2M1().widen(E2M1().narrow(values, 0), 0)
    table = torch.tensor(FP4_VALUES)
    nearest = (table - values[:, None]).abs().amin(1)
    assert torch.equal((found - values).abs(), nearest)
    expected = torch.tensor([0, 1.0, 1, 2, 2, 4, 4, 6])
    assert torch.equal(found[:8], expected)
    assert torch.equal(found[8:16], -expected)


def test_all_powers_of_two() -> None:
    """255 is not a number in the standard; it is infinite here, as in transformers."""
    found = E8M0Scales().widen(ALL_BYTES)
    assert found[:255].tolist() == [2.0 ** (byte - 127) for byte in range(255)]
    assert found[255] == torch.inf


def test_scales_that_hold_the_largest() -> None:
    """floor(log2(largest)) - 2, since the largest value that is stored is 1.5 * 2 ** 2."""
    largest = torch.tensor([0.0, 1.0, 6.0, 7.9, 8.0, 2.0**-140, 3e38])
    found = E8M0Scales().for_largest(largest, 6.0)
    assert found.tolist() == [127, 125, 127, 127, 128, 0, 252]

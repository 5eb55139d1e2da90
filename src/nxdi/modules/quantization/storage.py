"""What the bytes of quantized weights and of their scales stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nxdi.config.quantization import INT4, MXFP4, WeightQuantization
from nxdi.kernels.reference.int4 import nibbles, unpack


class Values(Protocol):
    """How values are stored. `dim` is the dimension along which bytes may hold several."""

    @property
    def per_byte(self) -> int: ...

    @property
    def are_integers(self) -> bool: ...

    def widen(self, stored: Tensor, dim: int) -> Tensor:
        """The values, float32."""
        ...

    def narrow(self, values: Tensor, dim: int) -> Tensor:
        """The nearest that can be stored, ties to even."""
        ...


@dataclass(frozen=True)
class Bytes:
    """One value in each element: int8, float8."""

    dtype: torch.dtype
    per_byte: int = 1

    @property
    def are_integers(self) -> bool:
        return not self.dtype.is_floating_point

    def widen(self, stored: Tensor, dim: int) -> Tensor:
        return stored.float()

    def narrow(self, values: Tensor, dim: int) -> Tensor:
        return (values.round() if self.are_integers else values).to(self.dtype)


@dataclass(frozen=True)
class Int4:
    """Two integers from -8 to 7 in a byte, two's complement, the first in the lower bits."""

    per_byte: int = 2
    are_integers: bool = True

    def widen(self, stored: Tensor, dim: int) -> Tensor:
        return unpack(stored, dim).float()

    def narrow(self, values: Tensor, dim: int) -> Tensor:
        return pack(values.round().to(torch.int32) & 15, dim)


@dataclass(frozen=True)
class E2M1:
    """Two floats of 4 bits in a byte, the first in the lower bits: 0, 0.5, 1, 1.5, 2, 3, 4, 6.

    Source: OCP Microscaling Formats (MX) 1.0.
    """

    per_byte: int = 2
    are_integers: bool = False

    def widen(self, stored: Tensor, dim: int) -> Tensor:
        bits = nibbles(stored, dim)
        m = bits & 7
        # Twice the magnitude: steps of 1, from 4 on of 2, from 6 on of 4.
        doubled = torch.where(m < 4, m, torch.where(m < 6, 2 * m - 4, 4 * m - 16))
        return doubled.float() * (0.5 - (bits >> 3).float())

    def narrow(self, values: Tensor, dim: int) -> Tensor:
        size = values.abs()
        bits = torch.zeros_like(size, dtype=torch.int32)
        # The middle between two neighbours goes to the one whose last bit is 0.
        for middle, is_up in zip((0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0), (0, 1) * 4, strict=False):
            bits += size >= middle if is_up else size > middle
        return pack(torch.where(values.signbit(), bits + 8, bits), dim)


class Scales(Protocol):
    """How scales are stored."""

    @property
    def dtype(self) -> torch.dtype: ...

    def widen(self, stored: Tensor) -> Tensor:
        """The scales, float32."""
        ...

    def for_largest(self, largest: Tensor, bound: float) -> Tensor:
        """The scales with which values up to `largest` fit the format, whose largest is `bound`."""
        ...


@dataclass(frozen=True)
class FloatScales:
    dtype: torch.dtype = torch.float32

    def widen(self, stored: Tensor) -> Tensor:
        return stored

    def for_largest(self, largest: Tensor, bound: float) -> Tensor:
        # A block of zeros has no scale of its own; any gives zeros.
        return torch.where(largest > 0, largest / bound, torch.ones_like(largest))


@dataclass(frozen=True)
class E8M0Scales:
    """Powers of two as their biased exponents: 2 ** (stored - 127).

    Source: OCP Microscaling Formats (MX) 1.0, whose conversion saturates the largest values.
    """

    dtype: torch.dtype = torch.uint8

    def widen(self, stored: Tensor) -> Tensor:
        exponent = stored.to(torch.int32)
        # The bits of a float32; 2 ** -127 is subnormal.
        return torch.where(exponent > 0, exponent << 23, 1 << 22).view(torch.float32)

    def for_largest(self, largest: Tensor, bound: float) -> Tensor:
        exponent = torch.frexp(largest).exponent - torch.frexp(torch.tensor(bound)).exponent
        exponent = torch.where(largest > 0, exponent, 0)
        return (exponent.clamp(-127, 127) + 127).to(torch.uint8)


def values_of(scheme: WeightQuantization) -> Values:
    """How a scheme stores values."""
    if scheme.name == INT4:
        return Int4()
    return E2M1() if scheme.name == MXFP4 else Bytes(scheme.dtype)


def scales_of(scheme: WeightQuantization) -> Scales:
    """How a scheme stores scales."""
    return E8M0Scales() if scheme.name == MXFP4 else FloatScales()


def pack(bits: Tensor, dim: int) -> Tensor:
    """The inverse of `nibbles`."""
    dim %= bits.dim()
    pairs: Tensor = bits.unflatten(dim, (-1, 2))
    low, high = pairs.unbind(dim + 1)
    return (low | high << 4).to(torch.uint8)

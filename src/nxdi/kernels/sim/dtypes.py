"""Data types of NKI, and how their bits become float32 numbers and back.

Elements are kept as NumPy arrays of a carrier type: the type itself where NumPy has it, otherwise
unsigned integers that hold the bits. Casts round to nearest even. Integers and float8 saturate;
float16 and bfloat16 overflow to infinity, as the documentation of `range_select` says they do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from nxdi.kernels.sim.rules import require

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class DType:
    """One element type. `exponent_bits` and `mantissa_bits` describe float8 formats only."""

    name: str
    itemsize: int
    carrier: Any
    is_float: bool = False
    exponent_bits: int = 0
    mantissa_bits: int = 0
    largest: float = 0.0
    # Of a microscaling type: the type that each element holds four of.
    packs: str = ""

    def __repr__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, str) and other == self.name)

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def is_integer(self) -> bool:
        return not self.is_float and self.name != "bool" and not self.packs

    @property
    def is_float8(self) -> bool:
        return self.is_float and self.itemsize == 1


def _integer(name: str) -> DType:
    return DType(name, np.dtype(name).itemsize, np.dtype(name))


bool_ = DType("bool", 1, np.dtype(np.bool_))
int8, int16, int32 = map(_integer, ("int8", "int16", "int32"))
uint8, uint16, uint32 = map(_integer, ("uint8", "uint16", "uint32"))
float16 = DType("float16", 2, np.dtype(np.float16), is_float=True)
float32 = DType("float32", 4, np.dtype(np.float32), is_float=True)
tfloat32 = DType("tfloat32", 4, np.dtype(np.float32), is_float=True)
bfloat16 = DType("bfloat16", 2, np.dtype(np.uint16), is_float=True)
_BYTE = np.dtype(np.uint8)
float8_e4m3 = DType("float8_e4m3", 1, _BYTE, True, 4, 3, 240.0)
float8_e4m3fn = DType("float8_e4m3fn", 1, _BYTE, True, 4, 3, 448.0)
float8_e5m2 = DType("float8_e5m2", 1, _BYTE, True, 5, 2, 57344.0)
float8_e8m0fnu = DType("float8_e8m0fnu", 1, _BYTE)
float8_e4m3fn_x4 = DType("float8_e4m3fn_x4", 4, np.dtype(np.uint32), packs="float8_e4m3fn")
float8_e5m2_x4 = DType("float8_e5m2_x4", 4, np.dtype(np.uint32), packs="float8_e5m2")
float4_e2m1fn_x4 = DType("float4_e2m1fn_x4", 2, np.dtype(np.uint16), packs="float4_e2m1fn")

DTYPES = {
    item.name: item
    for item in (
        *(bool_, int8, int16, int32, uint8, uint16, uint32, float16, float32, tfloat32),
        *(bfloat16, float8_e4m3, float8_e4m3fn, float8_e5m2, float8_e8m0fnu),
        *(float8_e4m3fn_x4, float8_e5m2_x4, float4_e2m1fn_x4),
    )
}


def as_dtype(spec: Any) -> DType:
    """The type that `spec` names: one of ours, a string, a NumPy or torch type."""
    if isinstance(spec, DType):
        return spec
    name = spec if isinstance(spec, str) else str(spec).removeprefix("torch.")
    if name not in DTYPES and not isinstance(spec, str):
        try:
            name = np.dtype(spec).name
        except TypeError:
            name = str(spec)
    require(name in DTYPES, "dtype-known", f"{name!r} is not a type here; use one of {[*DTYPES]}")
    return DTYPES[name]


@cache
def _float8_values(dtype: DType) -> Array:
    """The number that each of the 256 bit patterns stands for."""
    bits = np.arange(256)
    mantissa_size = 1 << dtype.mantissa_bits
    exponent = (bits & 127) >> dtype.mantissa_bits
    mantissa = (bits & (mantissa_size - 1)) / mantissa_size
    bias = (1 << (dtype.exponent_bits - 1)) - 1
    scale = np.exp2(np.maximum(exponent, 1).astype(np.float64) - bias)
    values = (mantissa + (exponent > 0)) * scale
    if dtype is float8_e4m3fn:
        values[[127, 255]] = np.nan
    else:
        top = exponent == (1 << dtype.exponent_bits) - 1
        values[top] = np.where(mantissa[top] == 0, np.inf, np.nan)
    signed: Array = np.where(bits < 128, values, -values).astype(np.float32)
    return signed


def _to_float8(dtype: DType, values: Array) -> Array:
    table = _float8_values(dtype)[:128]
    finite = np.isfinite(table)
    lowest = 2 - (1 << (dtype.exponent_bits - 1))
    size = np.minimum(np.abs(values), dtype.largest).astype(np.float32)
    _, exponent = np.frexp(size)
    step = np.exp2((np.maximum(exponent - 1, lowest) - dtype.mantissa_bits).astype(np.float32))
    rounded = np.rint(size / step) * step
    bits = np.searchsorted(table[finite], np.minimum(rounded, dtype.largest)).astype(np.uint8)
    if dtype is not float8_e4m3fn:
        infinity = int(np.argmax(np.isinf(table)))
        bits = np.where(np.isinf(values), np.uint8(infinity), bits)
    bits = np.where(np.isnan(values), np.uint8(127), bits)
    signed: Array = bits | (np.signbit(values).astype(np.uint8) << 7)
    return signed


def _to_bfloat16(values: Array) -> Array:
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF)
    rounded += (bits >> np.uint32(16)) & np.uint32(1)
    result: Array = (rounded >> np.uint32(16)).astype(np.uint16)
    nan = np.isnan(values)
    return np.where(nan, np.uint16(0x7FC0), result) if nan.any() else result


def _to_tfloat32(values: Array) -> Array:
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    kept: Array = (rounded & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(values), kept, values)


def _to_integer(dtype: DType, values: Array) -> Array:
    if not np.issubdtype(values.dtype, np.floating):
        limits = np.iinfo(dtype.carrier)
        return np.clip(values.astype(np.int64), limits.min, limits.max).astype(dtype.carrier)
    limits = np.iinfo(dtype.carrier)
    rounded = np.rint(np.nan_to_num(values.astype(np.float64), nan=0.0))
    return np.clip(rounded, limits.min, limits.max).astype(dtype.carrier)


_FLOAT4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def unpack(dtype: DType, raw: Array) -> Array:
    """Float32 [..., 4] of the numbers that microscaling elements hold."""
    if dtype is float4_e2m1fn_x4:
        bits = (raw[..., None] >> np.array([0, 4, 8, 12], np.uint16)) & 15
        sizes: Array = _FLOAT4[bits & 7]
        return np.where(bits < 8, sizes, -sizes)
    parts = np.ascontiguousarray(raw).view(np.uint8).reshape(*raw.shape, 4)
    values: Array = _float8_values(DTYPES[dtype.packs])[parts]
    return values


def pack(dtype: DType, values: Array) -> Array:
    """Microscaling elements of float8 from numbers [..., 4]."""
    parts = np.ascontiguousarray(_to_float8(DTYPES[dtype.packs], values))
    packed: Array = parts.view(np.uint32).reshape(values.shape[:-1])
    return packed


class Precise:
    """Every element has the bits that the device would hold."""

    computes = True

    def carrier(self, dtype: DType) -> Any:
        return dtype.carrier

    def decode(self, dtype: DType, raw: Array) -> Array:
        """Float32 numbers, as the engines see them."""
        if dtype is bfloat16:
            return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        if dtype.is_float8:
            decoded: Array = _float8_values(dtype)[raw]
            return decoded
        return raw.astype(np.float32)

    def encode(self, dtype: DType, values: Array) -> Array:
        """The elements that `values`, float32 or integer, are written as."""
        if dtype is bfloat16:
            return _to_bfloat16(values.astype(np.float32, copy=False))
        if dtype.is_float8:
            return _to_float8(dtype, values.astype(np.float32, copy=False))
        if dtype is tfloat32:
            return _to_tfloat32(values.astype(np.float32, copy=False))
        if dtype is bool_:
            return np.not_equal(values, 0)
        return _to_integer(dtype, values) if dtype.is_integer else values.astype(dtype.carrier)


class Single(Precise):
    """Floating-point elements of any type keep float32 precision."""

    def carrier(self, dtype: DType) -> Any:
        return np.dtype(np.float32) if dtype.is_float else dtype.carrier

    def decode(self, dtype: DType, raw: Array) -> Array:
        return raw.astype(np.float32)

    def encode(self, dtype: DType, values: Array) -> Array:
        if dtype.is_float:
            return values.astype(np.float32)
        return super().encode(dtype, values)


class ShapesOnly(Precise):
    """No elements at all: instructions are checked, recorded and timed."""

    computes = False


NUMERICS = {"precise": Precise, "fp32": Single, "shapes": ShapesOnly}

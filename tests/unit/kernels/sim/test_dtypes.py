from __future__ import annotations

import numpy as np
import pytest
import torch

from nxdi.errors import KernelError
from nxdi.kernels.sim.dtypes import DTYPES, Precise, Single, as_dtype

PRECISE = Precise()


def random_bits(count: int) -> np.ndarray:
    bits = np.random.default_rng(0).integers(0, 1 << 32, count, dtype=np.uint64)
    return bits.astype(np.uint32).view(np.float32)


def round_trip(name: str, values: np.ndarray) -> np.ndarray:
    dtype = as_dtype(name)
    return PRECISE.decode(dtype, PRECISE.encode(dtype, values))


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_casts_equal_those_of_torch(name: str) -> None:
    values = random_bits(20000)
    with np.errstate(all="ignore"):
        ours = round_trip(name, values)
    theirs = torch.from_numpy(values).to(getattr(torch, name)).float().numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)


@pytest.mark.parametrize(("name", "largest"), [("float8_e4m3fn", 448), ("float8_e5m2", 57344)])
def test_float8_casts_equal_those_of_torch_in_range(name: str, largest: float) -> None:
    generator = np.random.default_rng(0)
    values = generator.standard_normal(20000).astype(np.float32)
    values *= np.exp2(generator.integers(-18, 8, 20000)).astype(np.float32)
    values = np.clip(values, -largest, largest)
    theirs = torch.from_numpy(values).to(getattr(torch, name)).float().numpy()
    assert np.array_equal(round_trip(name, values), theirs)


@pytest.mark.parametrize("name", ["float8_e4m3", "float8_e4m3fn", "float8_e5m2"])
def test_every_float8_number_survives(name: str) -> None:
    dtype = DTYPES[name]
    bits = np.arange(256, dtype=np.uint8)
    values = PRECISE.decode(dtype, bits)
    kept = np.isfinite(values)
    assert np.array_equal(PRECISE.encode(dtype, values)[kept], bits[kept])
    assert values[kept].max() == dtype.largest


def test_float8_e4m3_rounds_half_to_even() -> None:
    dtype = DTYPES["float8_e4m3"]
    table = PRECISE.decode(dtype, np.arange(119, dtype=np.uint8))
    middles = (table[:-1] + table[1:]) / 2
    expected = np.arange(118) + np.arange(118) % 2
    assert np.array_equal(PRECISE.encode(dtype, middles), expected)


def test_float8_saturates_and_keeps_infinity_and_nan() -> None:
    values = np.array([1e9, -1e9, np.inf, -np.inf, np.nan, 244.0], np.float32)
    result = round_trip("float8_e4m3", values)
    assert result[[0, 1, 2, 3, 5]].tolist() == [240, -240, np.inf, -np.inf, 240]
    assert np.isnan(result[4])


def test_integers_round_half_to_even_and_saturate() -> None:
    values = np.array([0.5, 1.5, -2.5, 300, -300, np.nan, 3e9], np.float32)
    assert PRECISE.encode(DTYPES["int8"], values).tolist() == [0, 2, -2, 127, -128, 0, 127]
    assert PRECISE.encode(DTYPES["uint8"], values).tolist() == [0, 2, 0, 255, 0, 0, 255]
    assert PRECISE.encode(DTYPES["int32"], values)[-1] == 2**31 - 1


def test_tfloat32_keeps_ten_bits() -> None:
    values = np.array([1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-10], np.float32)
    assert round_trip("tfloat32", values).tolist() == [1, 1 + 2**-9, 1 + 2**-10]


def test_single_keeps_floats_and_casts_integers() -> None:
    values = np.array([1.000001, 2.5], np.float32)
    assert np.array_equal(Single().encode(DTYPES["bfloat16"], values), values)
    assert Single().encode(DTYPES["int8"], values).tolist() == [1, 2]


@pytest.mark.parametrize("spec", ["bfloat16", torch.bfloat16, DTYPES["bfloat16"]])
def test_a_dtype_has_several_names(spec: object) -> None:
    assert as_dtype(spec) is DTYPES["bfloat16"]
    assert as_dtype(np.float32) == "float32"


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(KernelError, match="float64"):
        as_dtype(np.float64)

"""Weights of 8 bits: what they stand for, and products with them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nxdi.config import NeuronConfig
from nxdi.config.quantization import WeightQuantization, weight_quantization
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.modules.quantization import dequantize, quantize
from nxdi.modules.quantization.blocks import format_of
from nxdi.modules.quantization.scaled import ScaledWeight, make_weight_format
from nxdi.parallel_layers.layers import ColumnParallelLinear
from tolerances import SUM_ORDER_FP32

DTYPES = ("int8", "f8e4m3", "f8e5m2")


def scheme(
    dtype: str = "int8", kind: str = "per_channel_symmetric", backend: str = "cpu"
) -> WeightQuantization:
    config = NeuronConfig(
        quantized=True,
        quantization_dtype=dtype,
        quantization_type=kind,
        torch_dtype="float32",
        backend=backend,
    )
    found = weight_quantization(config)
    assert found is not None
    return found


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 7), columns=st.integers(1, 9))
def test_int8_is_off_by_half_a_step_at_most(seed: int, rows: int, columns: int) -> None:
    """A scale per channel may cut more off; see test_clipping."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=draw) * 10.0 ** int(seed % 9 - 4)
    stored, scale = quantize(weight, scheme(kind="per_tensor_symmetric"))
    assert stored.dtype is torch.int8
    assert tuple(scale.shape) == (1, 1)
    kind = scheme(kind="per_tensor_symmetric")
    assert bool(((dequantize(stored, scale, kind) - weight).abs() <= scale * 0.5001).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_rows(dtype: str) -> None:
    """Zeros stay zeros, the largest value is kept, and nothing becomes infinite or no number."""
    tiny = torch.finfo(torch.float32).tiny
    weight = torch.tensor([[0.0, 0, 0], [1e-30, -1e-30, 0], [3e38, -1, 1e30], [1e4, 1e-4, -tiny]])
    stored, scale = quantize(weight, scheme(dtype))
    found = dequantize(stored, scale, scheme(dtype))
    assert bool(found.isfinite().all())
    assert found[0].tolist() == [0, 0, 0]
    for row in (1, 2, 3):
        torch.testing.assert_close(found[row].abs().max(), weight[row].abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_exact_stays_exact(dtype: str) -> None:
    bound = scheme(dtype).bound
    weight = torch.tensor([[bound, -bound, 0.0, 1.0, -64.0, bound]])
    stored = quantize(weight, scheme(dtype))
    assert torch.equal(dequantize(*stored, scheme(dtype)), weight)


def test_float8_is_bounded_by_what_the_device_has() -> None:
    weight = torch.tensor([[1.0, -3.0]])
    for backend, bound in (("cpu", 448.0), ("neuron", 240.0)):
        stored, _ = quantize(weight, scheme("f8e4m3", backend=backend))
        assert stored.float().abs().max() == bound


@pytest.mark.parametrize("kind", ["per_channel_symmetric", "per_tensor_symmetric"])
def test_products_and_rows_are_those_of_the_weight_it_stands_for(kind: str) -> None:
    found = make_weight_format(format_of(scheme(kind=kind), 2), torch.float32)
    assert isinstance(found, ScaledWeight)
    num_scales = 6 if kind == "per_channel_symmetric" else 1
    layer = ColumnParallelLinear(5, 6, bias=True)
    draw = torch.Generator().manual_seed(0)
    layer.weight = torch.nn.Parameter(
        torch.randint(-127, 128, (6, 5), generator=draw, dtype=torch.int8), requires_grad=False
    )
    layer.scale = torch.nn.Parameter(torch.rand(num_scales, 1, generator=draw))
    bias, x = torch.randn(6, generator=draw), torch.randn(2, 3, 5, generator=draw)
    plain = dequantize(layer.weight, layer.scale, scheme(kind=kind))
    torch.testing.assert_close(
        found.multiply(layer, x, bias), x @ plain.T + bias, rtol=0, atol=100 * SUM_ORDER_FP32
    )
    ids = torch.tensor([[0, 5], [3, 3]])
    assert torch.equal(found.look_up(layer, ids), plain[ids])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"quantization_type": "asymmetric"}, UnsupportedError, "per_channel_symmetric"),
        ({"quantization_dtype": "int3"}, UnsupportedError, "int8"),
        ({"quantized": False, "modules_to_not_convert": ["x"]}, ConfigError, "quantized=True"),
        ({"quantized": False, "quantized_checkpoints_path": "x"}, ConfigError, "quantized=True"),
    ],
)
def test_other_schemes_are_refused(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        NeuronConfig(**{"quantized": True, "torch_dtype": "float32", **options})

"""Weights in blocks: how far they move, products and rows of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nxdi.config import NeuronConfig
from nxdi.config.quantization import WeightQuantization, weight_quantization
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.modules.quantization import dequantize, quantize
from nxdi.modules.quantization.blocks import format_of
from nxdi.modules.quantization.scaled import BlockWeight, ScaledWeight, make_weight_format
from nxdi.parallel_layers.layers import ColumnParallelLinear
from tiny_modules import drawn
from tolerances import SUM_ORDER_FP32

MXFP4 = {
    "quantization_dtype": "f4e2m1",
    "quantization_scale_dtype": "f8e8m0",
    "quantization_block_size": [1, 32],
}
# A step of the values next to the largest, over the largest.
STEPS = {"int8": 1 / 127, "f8e4m3": 1 / 14, "f8e5m2": 1 / 7, "int4": 1 / 7, "f4e2m1": 1 / 2}


def scheme(**options: object) -> WeightQuantization:
    asked = {"quantization_type": "blockwise_symmetric", "quantization_block_size": [4, 6]}
    found = weight_quantization(
        NeuronConfig(quantized=True, torch_dtype="float32", **{**asked, **options})
    )
    assert found is not None
    return found


def of_dtype(dtype: str) -> WeightQuantization:
    return scheme(**MXFP4) if dtype == "f4e2m1" else scheme(quantization_dtype=dtype)


@pytest.mark.parametrize("dtype", STEPS)
def test_off_by_half_a_step_of_its_block_at_most(dtype: str) -> None:
    weight = drawn(10, 64) * torch.logspace(-6, 6, 10)[:, None]
    weight[3], weight[:, 7] = 0, 0
    weight[5, 5] = 1e20  # the others of its block vanish, and no other
    stored, scale = quantize(weight, of_dtype(dtype))
    found = dequantize(stored, scale, of_dtype(dtype))
    rows, columns = of_dtype(dtype).linear_block
    assert rows is not None
    assert columns is not None
    assert bool(found.isfinite().all())
    for top in range(0, 10, rows):
        for left in range(0, 64, columns):
            block = slice(top, top + rows), slice(left, left + columns)
            limit = STEPS[dtype] * float(weight[block].abs().max())
            assert float((found[block] - weight[block]).abs().max()) <= 0.5001 * limit


@pytest.mark.parametrize("dtype", STEPS)
def test_quantizing_again_changes_nothing(dtype: str) -> None:
    found = of_dtype(dtype)
    once = dequantize(*quantize(drawn(8, 32), found), found)
    torch.testing.assert_close(dequantize(*quantize(once, found), found), once)


@pytest.mark.parametrize("dtype", STEPS)
@pytest.mark.parametrize("dims", [(), (3,)])
def test_shapes(dtype: str, dims: tuple[int, ...]) -> None:
    found = of_dtype(dtype)
    weight = drawn(*dims, 32, 10) if dims else drawn(10, 32)
    stored, scale = quantize(weight, found)
    rows, columns = found.linear_block
    assert rows is not None
    assert columns is not None
    half = 2 if found.is_packed else 1
    blocks = -(-10 // rows), -(-32 // columns)
    if dims:
        assert tuple(stored.shape) == (3, 32 // half, 10)
        assert tuple(scale.shape) == (3, *reversed(blocks))
    else:
        assert tuple(stored.shape) == (10, 32 // half)
        assert tuple(scale.shape) == blocks
    assert dequantize(stored, scale, found).shape == weight.shape


@pytest.mark.parametrize("dtype", STEPS)
def test_products_and_rows_are_those_of_the_weight_it_stands_for(dtype: str) -> None:
    found = of_dtype(dtype)
    layer = ColumnParallelLinear(32, 10, bias=False)
    stored, scale = quantize(drawn(10, 32), found)
    plain = dequantize(stored, scale, found)
    layer.weight = nn.Parameter(stored, requires_grad=False)
    layer.scale = nn.Parameter(scale, requires_grad=False)
    kept = make_weight_format(format_of(found, 2), torch.float32)
    assert isinstance(kept, BlockWeight)
    assert not isinstance(kept, ScaledWeight)
    x, bias = drawn(2, 3, 32, seed=1), drawn(10, seed=2)
    torch.testing.assert_close(
        kept.multiply(layer, x, bias), x @ plain.T + bias, rtol=0, atol=10 * SUM_ORDER_FP32
    )
    ids = torch.tensor([[0, 9], [3, 3]], dtype=torch.int32)
    assert torch.equal(kept.look_up(layer, ids), plain[ids])


def test_blocks_larger_than_the_weight() -> None:
    largest = scheme(quantization_block_size=[10**18, 10**18])
    weight = drawn(10, 32)
    stored, scale = quantize(weight, largest)
    assert tuple(scale.shape) == (1, 1)
    expected = dequantize(*quantize(weight, scheme(quantization_block_size=[10, 32])), largest)
    assert torch.equal(dequantize(stored, scale, largest), expected)


def test_nxdis_axes_of_experts_name_inputs_first() -> None:
    """Its axes 1 and 2 are those of [experts, inputs, outputs]."""
    found = scheme(quantization_block_size=[6, 4], quantization_block_axis=[1, 2])
    assert found == scheme(quantization_block_size=[4, 6], quantization_block_axis=[0, 1])
    assert found.expert_block == (1, 6, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"quantization_block_size": None}, ConfigError, "two integers"),
        ({"quantization_block_size": [128]}, ConfigError, "two integers"),
        ({"quantization_block_size": [0, 128]}, ConfigError, "two integers"),
        ({"quantization_block_axis": [0, 2]}, ConfigError, "quantization_block_axis"),
        ({"quantization_block_axis": 1}, ConfigError, "quantization_block_axis=1 is neither"),
        ({"quantization_type": "per_tensor_symmetric"}, ConfigError, "need quantization_type"),
        ({"quantization_scale_dtype": "f8e8m0"}, UnsupportedError, "use 'f32'"),
        ({"quantization_dtype": "f4e2m1"}, UnsupportedError, "use 'f8e8m0'"),
        ({**MXFP4, "quantization_block_size": [1, 16]}, UnsupportedError, r"\[1, 32\]"),
        (
            {"quantization_dtype": "int4", "quantization_block_size": [1, 3]},
            ConfigError,
            "share a byte",
        ),
    ],
)
def test_blocks_that_are_none(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        scheme(**options)

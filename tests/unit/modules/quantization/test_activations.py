"""Layers whose input is quantized: against the rule in float64, with extreme rows, and refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nxdi.config import NeuronConfig
from nxdi.config.activation_quantization import ActivationQuantization, activation_quantization
from nxdi.config.quantization import weight_quantization
from nxdi.errors import ConfigError, UnsupportedError, WeightError
from nxdi.kernels.registry import platform
from nxdi.modules.quantization import dequantize
from nxdi.modules.quantization.activations import quantize_activations, quantize_inputs
from nxdi.modules.quantization.convert import quantize_modules
from nxdi.parallel_layers.layers import ColumnParallelLinear
from tiny_models import load_app, make_app, save_tiny, tiny_hf_model
from tolerances import LINEAR_FP32, LOGITS_FP32

DTYPES = ("int8", "f8e4m3", "f8e5m2")
PER_CHANNEL = {"quantized": True, "quantization_type": "per_channel_symmetric"}


def config(dtype: str = "int8", **options: Any) -> NeuronConfig:
    asked = {"activation_quantization_type": "dynamic", **PER_CHANNEL, **options}
    return NeuronConfig(torch_dtype="float32", quantization_dtype=dtype, **asked)


def rule_of(**options: Any) -> ActivationQuantization:
    found = activation_quantization(config(**options))
    assert found is not None
    return found


def by_definition(x: Tensor, rule: ActivationQuantization, scale: Tensor | None) -> Tensor:
    """What quantized activations stand for, in float64, one value after the other."""
    result = []
    for row in x.double().view(-1, x.shape[-1]).tolist():
        cut = [max(-rule.clamp, min(rule.clamp, value)) for value in row]
        largest = max(abs(value) for value in cut)
        unit = float(scale) if scale is not None else float(torch.tensor(largest) / rule.bound)
        unit = max(unit, torch.finfo(torch.float32).tiny) if scale is None else unit
        steps = [max(-rule.bound, min(rule.bound, value / unit)) for value in cut]
        if rule.dtype is torch.int8:
            steps = [float(round(step)) for step in steps]  # Python's is to even as well
        else:
            steps = torch.tensor(steps).to(rule.dtype).double().tolist()
        result.append([step * unit for step in steps])
    return torch.tensor(result, dtype=torch.float64).view(x.shape)


EXTREME = torch.tensor(
    [
        [0.0, 0, 0, 0, 0],
        [1e-3, -2e-3, 1e3, 5e-4, 0],  # one outlier
        [1e-40, -3e-41, 2e-42, 0, 1e-45],  # subnormal
        [2e-38, 1e-39, -1e-38, 0, 0],
        [3e38, -1e38, 1, 0, -3e38],
        [127, -127, 63.5, 0.5, 1.5],  # ties
        [-1, 1, -1, 1, -1],
    ]
)


@pytest.mark.parametrize("clamp", [math.inf, 2.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("static", [None, 0.05])
def test_activations_are_those_of_the_rule(dtype: str, clamp: float, static: float | None) -> None:
    rule = rule_of(dtype=dtype, quantize_clamp_bound=clamp)
    scale = None if static is None else torch.tensor([static])
    few, units = quantize_activations(EXTREME, rule, scale)
    assert few.dtype is rule.dtype
    assert units.shape == ((7, 1) if static is None else (1,))
    found = few.double() * units.double()
    assert bool(found.isfinite().all())
    expected = by_definition(EXTREME, rule, scale)
    # A value at the middle between two steps may go to either.
    step = units.double() * (1 if dtype == "int8" else few.double().abs() * 0.25 + 0.01)
    assert bool(((found - expected).abs() <= step * 1.0001).all())
    assert float((found == expected).double().mean()) > 0.8
    assert found[0].tolist() == [0] * 5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_token_that_is_not_finite_stays_so_and_leaves_the_others(value: float) -> None:
    layer, _ = quantized_layer("int8")
    x = torch.ones(3, 5)
    x[1, 2] = value
    y = layer(x)
    assert not bool(y[1].isfinite().any())
    assert bool(y[[0, 2]].isfinite().all())


def quantized_layer(dtype: str, **options: Any) -> tuple[ColumnParallelLinear, Tensor]:
    """A layer with quantized weights and inputs, and the weight it stands for, in float64."""
    draw = torch.Generator().manual_seed(3)
    layer = torch.nn.ModuleDict({"up_proj": ColumnParallelLinear(5, 6, bias=True)})
    asked = config(dtype, **options)
    scheme, rule = weight_quantization(asked), activation_quantization(asked)
    assert scheme is not None
    assert rule is not None
    quantize_modules(layer, scheme, is_tied=False)
    quantize_inputs(layer, rule)
    found = layer["up_proj"]
    assert isinstance(found, ColumnParallelLinear)
    found.weight.data = torch.randint(-120, 121, (6, 5), generator=draw).to(scheme.dtype)
    found.scale.data = torch.rand(found.scale.shape, generator=draw) / 100
    found.bias.data = torch.randn(6, generator=draw)
    if rule.is_static:
        found.input_scale.data = torch.tensor([0.05])
    return found, dequantize(found.weight, found.scale, scheme).double()


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("weights", ["per_channel_symmetric", "per_tensor_symmetric"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["generic", "cpu"])
def test_products_are_those_of_the_rule(name: str, dtype: str, weights: str, kind: str) -> None:
    layer, plain = quantized_layer(
        dtype, quantization_type=weights, activation_quantization_type=kind
    )
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    rule = rule_of(dtype=dtype)
    few, units = quantize_activations(x, rule, getattr(layer, "input_scale", None))
    wide = few.double() * units.double()
    expected = wide @ plain.T + layer.bias.double()
    with platform(name):
        found = layer(x)
    size = wide.abs() @ plain.abs().T + layer.bias.double().abs()
    assert bool(((found - expected).abs() <= LINEAR_FP32 * size).all())


def test_wide_sums_are_exact_where_float32_has_no_more_bits() -> None:
    """2,000 products of 127 * 127 and one of 1: 32,258,001, which float32 cannot hold."""
    from nxdi.kernels.ops import Int8Call
    from nxdi.kernels.reference.int8 import int8_linear

    x = torch.full((1, 2001), 127, dtype=torch.int8)
    weight = x.clone()
    x[0, 0] = weight[0, 0] = 1
    assert int8_linear(x, weight, Int8Call(2001)).tolist() == [[32_258_001]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"quantized": False}, ConfigError, "needs quantized weights"),
        ({"activation_quantization_type": "blockwise"}, ConfigError, "'dynamic', 'static'"),
        ({"quantize_clamp_bound": 0.0}, ConfigError, "above 0"),
        (
            {"activation_quantization_type": None, "quantize_clamp_bound": 3.0},
            ConfigError,
            "activation_quantization_type",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        config(**options)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tiny_hf_model("llama"), tmp_path_factory.mktemp("plain") / "model")


def logits(folder: Path, **options: Any) -> Tensor:
    found = load_app(folder, seq_len=32, **PER_CHANNEL, **options)(torch.tensor([[5, 9, 3]]))
    assert found.logits is not None
    return found.logits


@pytest.mark.parametrize("dtype", ["int8", "f8e4m3"])
def test_a_model_moves_little_and_ranks_share_it(model_dir: Path, dtype: str) -> None:
    options = {"quantization_dtype": dtype, "activation_quantization_type": "dynamic"}
    plain, found = logits(model_dir, quantization_dtype=dtype), logits(model_dir, **options)
    largest = plain.abs().max()
    assert LOGITS_FP32 < (found - plain).abs().max() < 0.2 * largest
    # Ranks have the scales of what they have of a token.
    assert (logits(model_dir, **options, tp_degree=2) - found).abs().max() < 0.1 * largest


def test_static_scales_come_from_the_checkpoint(model_dir: Path) -> None:
    app = make_app(model_dir, activation_quantization_type="static", **PER_CHANNEL)
    with pytest.raises(WeightError, match=r"layers\.0\.mlp\.down_proj\.input_scale"):
        app.rank_weights((0,))


def test_weights_in_blocks_have_no_such_product() -> None:
    with pytest.raises(UnsupportedError, match="does not go with quantization_type='blockwise"):
        config(quantization_type="blockwise_symmetric", quantization_block_size=[1, 32])

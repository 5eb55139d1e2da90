"""What other programs store: bit for bit what they say it stands for, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nxdi.config import NeuronConfig
from nxdi.config.quantization import WeightQuantization
from nxdi.errors import UnsupportedError, WeightError
from nxdi.modules.quantization import dequantize
from nxdi.runtime.prequantized import StoredFormat, read_format
from nxdi.runtime.prequantized.source import WeightsSource
from quantized_folders import KINDS, fp8, widen_fp8, widen_mxfp4
from tiny_modules import drawn

NAME = "model.layers.0.self_attn.q_proj"


def scheme_of(found: StoredFormat) -> WeightQuantization:
    neuron = NeuronConfig(torch_dtype="float32", backend="cpu")
    scheme = WeightsSource(Path(), found, found.keywords).scheme(neuron)
    assert scheme is not None
    return scheme


def widened(quantization: Any, tensors: dict[str, Tensor], name: str) -> Tensor:
    found = read_format(quantization)
    weights, scales = found.split(tensors)
    assert set(weights) == {name}
    assert set(scales) == {name}
    return dequantize(weights[name], scales[name], scheme_of(found))


def extreme(rows: int = 48, columns: int = 64) -> dict[str, Tensor]:
    """Weights that a format may get wrong."""
    outlier = drawn(rows, columns)
    outlier[17, 33] = 1e6
    mixed = drawn(rows, columns) * torch.logspace(-30, 30, rows)[:, None]
    return {
        "random": drawn(rows, columns),
        "zeros": torch.zeros(rows, columns),
        "largest": torch.full((rows, columns), 3e38) * drawn(rows, columns).sign(),
        "subnormal": torch.full((rows, columns), 1e-40) * drawn(rows, columns),
        "outlier": outlier,
        "mixed": mixed,
    }


@pytest.mark.parametrize("weight", extreme())
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_weight_stands_for(kind: str, weight: str) -> None:
    stored, expected = KINDS[kind].store(extreme()[weight])
    tensors = {f"{NAME}.{suffix}": tensor for suffix, tensor in stored.items()}
    found = widened(KINDS[kind].quantization, tensors, f"{NAME}.weight")
    assert torch.equal(found.to(expected.dtype), expected)


@pytest.mark.parametrize("kind", ["int8 channel", "int4 group", "float8 channel"])
def test_scales_of_16_bits(kind: str) -> None:
    """The product is exact in float32, and so rounds once, as it does for them."""
    stored, expected = KINDS[kind].store(drawn(48, 64).bfloat16())
    tensors = {f"{NAME}.{suffix}": tensor for suffix, tensor in stored.items()}
    assert expected.dtype is torch.float32 or expected.dtype is torch.bfloat16
    tensors[f"{NAME}.weight_scale"] = tensors[f"{NAME}.weight_scale"].bfloat16()
    found = widened(KINDS[kind].quantization, tensors, f"{NAME}.weight")
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=2**-7, atol=0)


def test_every_byte_of_float8() -> None:
    stored = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(16, 16)
    stored = torch.where(stored.float().isnan(), torch.zeros(()), stored.float())
    scales = torch.tensor([[1e-38, 1.0], [3.0, 0.1]])
    tensors = {
        f"{NAME}.weight": stored.to(torch.float8_e4m3fn),
        f"{NAME}.weight_scale_inv": scales,
    }
    found = widened(fp8(8, 8).quantization, tensors, f"{NAME}.weight")
    assert torch.equal(found, widen_fp8(tensors[f"{NAME}.weight"], scales))


def test_every_byte_and_scale_of_mxfp4() -> None:
    """All scales but 255, which is no number."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 2, 8, 16).repeat(16, 2, 4, 1)
    scales = torch.arange(16 * 4 * 32).view(16, 4, 32).remainder(255).to(torch.uint8)
    name = "model.layers.0.mlp.experts.down_proj"
    tensors = {f"{name}_blocks": blocks, f"{name}_scales": scales}
    found = widened({"quant_method": "mxfp4"}, tensors, name)
    expected = widen_mxfp4(blocks, scales)
    assert torch.equal(found, expected)
    assert torch.equal(found.signbit(), expected.signbit())


GROUPS = KINDS["int8 channel"].quantization["config_groups"]
WEIGHTS = GROUPS["group_0"]["weights"]
TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def groups(**changes: Any) -> dict[str, Any]:
    return {"group_0": {**GROUPS["group_0"], **changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config_groups": groups(input_activations={**TOKENS, "num_bits": 4})}, "num_bits=4"),
        ({"config_groups": groups(input_activations={**TOKENS, "dynamic": False})}, "dynamic"),
        ({"config_groups": groups(output_activations=TOKENS)}, "output_activations"),
        ({"config_groups": groups(weights={**WEIGHTS, "symmetric": False})}, "symmetric=False"),
        ({"config_groups": groups(weights={**WEIGHTS, "num_bits": 3})}, "num_bits=3"),
        ({"config_groups": groups(weights={**WEIGHTS, "strategy": "token"})}, "strategy='token'"),
        ({"config_groups": groups(weights={**WEIGHTS, "actorder": "group"})}, "actorder"),
        ({"config_groups": {**groups(), "b": {"weights": {}, "targets": []}}}, "2 config_groups"),
        ({"config_groups": {}}, "0 config_groups"),
        ({"format": "nvfp4-pack-quantized"}, "nvfp4-pack-quantized"),
        ({"format": "pack-quantized"}, "pack-quantized"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ({"transform_config": {"a": 1}}, "transform_config"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        ({"quantization_status": "frozen"}, "frozen"),
        ({"ignore": ["re:(a+)+b"]}, "take very long"),
        ({"ignore": ["re:" + "a*" * 7]}, "take very long"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": None}, "no quant_method"),
        ({"quant_method": ["fp8"]}, "no quant_method"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "activation_scheme='static'"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt='e5m2'"),
    ],
    ids=str,
)
def test_schemes_that_are_not_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read_format({**KINDS["int8 channel"].quantization, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"config_groups": 3},
        {"config_groups": {"a": 3}},
        {"config_groups": groups(weights=None)},
        {"config_groups": groups(targets="Linear")},
        {"config_groups": groups(weights={**WEIGHTS, "strategy": "group", "group_size": "a"})},
        {"config_groups": groups(weights={**WEIGHTS, "strategy": "block"})},
        {"ignore": [1]},
        {"ignore": ["re:["]},
        {"sparsity_config": 1},
        {"quant_method": "fp8", "weight_block_size": [128]},
        {"quant_method": "fp8", "weight_block_size": [128, True]},
        {"quant_method": "fp8", "weight_block_size": "ab"},
        {"quant_method": "fp8", "weight_block_size": [1, 1], "modules_to_not_convert": 1},
        {"quant_method": "mxfp4", "modules_to_not_convert": {}},
    ],
    ids=str,
)
def test_configs_that_are_damaged(changes: dict[str, Any]) -> None:
    with pytest.raises(WeightError, match=r"restore config\.json"):
        read_format({**KINDS["int8 channel"].quantization, **changes})


def stored_tensors(kind: str) -> dict[str, Tensor]:
    stored, _ = KINDS[kind].store(drawn(48, 64))
    return {f"{NAME}.{suffix}": tensor for suffix, tensor in stored.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_scales_that_are_missing_or_of_another_shape(kind: str) -> None:
    found, tensors = read_format(KINDS[kind].quantization), stored_tensors(kind)
    name = next(name for name in tensors if "scale" in name)
    scale = tensors.pop(name)
    with pytest.raises(WeightError, match=r"q_proj\.weight\w* has no scales"):
        found.split(tensors)
    with pytest.raises(WeightError, match=r"the scales of .* have shape"):
        found.split({**tensors, name: scale.repeat(3, *[1] * (scale.dim() - 1))})


def test_what_contradicts_the_config() -> None:
    tensors = stored_tensors("int8 channel")
    with pytest.raises(
        WeightError, match=r"stored as torch\.int8, but quantization_config says torch\.float8"
    ):
        read_format(KINDS["float8 channel"].quantization).split(tensors)
    for ignored in (NAME, r"re:.*self_attn\.[qkv]_proj$"):
        quantization = {**KINDS["int8 channel"].quantization, "ignore": [ignored]}
        with pytest.raises(WeightError, match="says that it is not"):
            read_format(quantization).split(tensors)
    targets = {
        **KINDS["int8 channel"].quantization,
        "config_groups": groups(targets=["re:.*mlp.*"]),
    }
    with pytest.raises(WeightError, match="says that it is not"):
        read_format(targets).split(tensors)
    for method in ({**fp8(8, 8).quantization}, {"quant_method": "mxfp4"}):
        one = {**method, "modules_to_not_convert": [NAME]}
        stored = {f"{NAME}_blocks": torch.zeros(1, 1, 1, 16, dtype=torch.uint8)}
        stored = stored_tensors("fp8") if method["quant_method"] == "fp8" else stored
        with pytest.raises(WeightError, match="says that it is not"):
            read_format(one).split(stored)


def test_targets_by_name() -> None:
    quantization = {
        **KINDS["int8 channel"].quantization,
        "config_groups": groups(targets=["re:.*self_attn.*"]),
    }
    weights, scales = read_format(quantization).split(stored_tensors("int8 channel"))
    assert [*weights] == [*scales] == [f"{NAME}.weight"]


def test_blocks_of_another_shape() -> None:
    blocks = torch.zeros(2, 3, 4, 8, dtype=torch.uint8)
    with pytest.raises(WeightError, match=r"x_blocks has shape \(2, 3, 4, 8\)"):
        read_format({"quant_method": "mxfp4"}).split({"x_blocks": blocks, "x_scales": blocks})
    words = torch.zeros(2, 3, 4, dtype=torch.int32)
    with pytest.raises(WeightError, match="not that of a matrix"):
        read_format(KINDS["int4 group"].quantization).split(
            {"x.weight_packed": words, "x.weight_scale": words}
        )


def test_plain_tensors_stay() -> None:
    plain = {"norm.weight": drawn(4), "embed.weight": drawn(4, 4)}
    for kind in KINDS.values():
        weights, scales = read_format(kind.quantization).split(plain)
        assert weights == plain
        assert scales == {}

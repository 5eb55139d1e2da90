"""Each rank's piece of a quantized weight is the piece of what the weight stands for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nxdi.config import NeuronConfig
from nxdi.config.quantization import WeightQuantization, weight_quantization
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.modules.moe.experts import Experts
from nxdi.modules.quantization import dequantize, parts_of, quantize, quantize_modules
from nxdi.modules.quantization.scaled import BlockExperts, BlockWeight
from nxdi.parallel_layers.layers import ColumnParallelLinear, RowParallelLinear
from nxdi.parallel_layers.parallel_state import tensor_parallel
from nxdi.parallel_layers.sharding import (
    ExpertLayout,
    HeadShard,
    Shard,
    set_shard,
    shard_of,
)
from tiny_modules import drawn
from tiny_moe import spec_with


def blockwise(rows: int, columns: int, dtype: str = "int8") -> WeightQuantization:
    mx = {"quantization_scale_dtype": "f8e8m0"} if dtype == "f4e2m1" else {}
    found = weight_quantization(
        NeuronConfig(
            quantized=True,
            quantization_type="blockwise_symmetric",
            quantization_dtype=dtype,
            quantization_block_size=[rows, columns],
            torch_dtype="float32",
            **mx,
        )
    )
    assert found is not None
    return found


def of_type(kind: str) -> WeightQuantization:
    config = NeuronConfig(quantized=True, quantization_type=kind, torch_dtype="float32")
    found = weight_quantization(config)
    assert found is not None
    return found


def check_pieces(make: type[nn.Module] | object, tp: int, scheme: WeightQuantization) -> None:
    """`make()` is a layer with a `weight`."""
    for rank in range(tp):
        with tensor_parallel(tp):
            plain, layer = make(), nn.Sequential(make())  # type: ignore[operator]
        rule, piece = shard_of(plain.weight), tuple(plain.weight.shape)
        assert rule is not None
        weight = drawn(*rule.full_shape(piece), seed=1)
        stored, scale = quantize(weight, scheme)
        with tensor_parallel(tp):
            quantize_modules(layer, scheme, is_tied=False)
        fill(layer[0], {"weight": stored, "scale": scale}, rank)
        found = layer[0].weight_format
        assert isinstance(found, BlockWeight)
        expected = rule.cut(dequantize(stored, scale, scheme), rank, piece)
        assert torch.equal(found.stored.widen(layer[0].weight, layer[0].scale), expected)


def fill(module: nn.Module, full: dict[str, Tensor], rank: int) -> None:
    for name, tensor in full.items():
        parameter = module.get_parameter(name)
        rule = shard_of(parameter)
        shape = tuple(parameter.shape)
        assert tuple(tensor.shape) == (shape if rule is None else rule.full_shape(shape))
        piece = tensor if rule is None else rule.cut(tensor, rank, shape)
        assert tuple(piece.shape) == shape
        parameter.data.copy_(piece)


SCHEMES = [
    blockwise(4, 4),
    blockwise(128, 128, "f8e4m3"),
    blockwise(5, 3),
    blockwise(1, 2, "int4"),
    blockwise(3, 32, "int4"),
    of_type("per_channel_symmetric"),
    of_type("per_tensor_symmetric"),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.name}-{s.linear_block}")
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_rows_and_columns(tp: int, scheme: WeightQuantization) -> None:
    """20 rows and 24 columns on up to four ranks cut blocks of any size."""
    check_pieces(lambda: ColumnParallelLinear(24, 20, bias=False), tp, scheme)
    check_pieces(lambda: RowParallelLinear(24, 20, bias=False, input_is_parallel=True), tp, scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.name}-{s.linear_block}")
@pytest.mark.parametrize("dim", [0, 1])
def test_heads_that_are_copied_and_padded(dim: int, scheme: WeightQuantization) -> None:
    rule = HeadShard(dim, ((2, 0), (-1, 1), (1, 1)), head_dim=6, num_heads=3)

    def make() -> nn.Module:
        layer = ColumnParallelLinear(18, 12, bias=False, shard=rule)
        shape = (12, 20) if dim == 0 else (20, 12)
        layer.weight = nn.Parameter(torch.empty(shape), requires_grad=False)
        set_shard(layer.weight, rule)
        return layer

    for rank in range(3):
        layer = nn.Sequential(make())
        plain = layer[0].weight
        weight = drawn(*rule.full_shape(tuple(plain.shape)), seed=2)
        stored, scale = quantize(weight, scheme)
        quantize_modules(layer, scheme, is_tied=False)
        fill(layer[0], {"weight": stored, "scale": scale}, rank)
        found = layer[0].weight_format.stored.widen(layer[0].weight, layer[0].scale)
        expected = rule.cut(dequantize(stored, scale, scheme), rank, tuple(plain.shape))
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "scheme",
    [*SCHEMES, of_type("expert_wise_per_channel_symmetric")],
    ids=lambda s: f"{s.name}-{s.expert_block}",
)
@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1)])
def test_experts(tp: int, ep: int, scheme: WeightQuantization) -> None:
    spec = spec_with(hidden_size=20, intermediate_size=28, num_experts=4)
    layout = ExpertLayout(4, tp, ep)
    if scheme.is_packed and tp == 3:
        scheme = replace(scheme, name="int8", bound=127.0)  # 28 / 3 would begin within a byte
    for rank in range(tp * ep):
        plain = Experts(spec, layout, torch.float32)
        experts = Experts(spec, layout, torch.float32)
        quantize_modules(nn.Sequential(experts), scheme, is_tied=False)
        for name in Experts.WEIGHTS:
            parameter = plain.get_parameter(name)
            rule, piece = shard_of(parameter), tuple(parameter.shape)
            assert rule is not None
            weight = drawn(*rule.full_shape(piece), seed=3)
            stored, scale = quantize(weight, scheme, *parts_of(parameter))
            fill(experts, {name: stored, f"{name}_scale": scale}, rank)
            widened = dequantize(stored, scale, scheme, *parts_of(parameter))
            expected = rule.cut(widened, rank, piece)
            assert isinstance(experts.weight_format, BlockExperts)
            like = torch.zeros(1)
            assert torch.equal(experts.weight_format.take(experts, name, None, like), expected)
            which = torch.tensor([0, layout.num_local - 1, 0], dtype=torch.int32)
            found = experts.weight_format.take(experts, name, which, like)
            assert torch.equal(found, expected[which])


def test_a_piece_that_begins_within_a_byte_is_refused() -> None:
    with tensor_parallel(2):
        layer = nn.Sequential(RowParallelLinear(6, 4, bias=False, input_is_parallel=True))
        with pytest.raises(ConfigError, match=r"0\.weight has 6 input features.* would have 3"):
            quantize_modules(layer, blockwise(1, 2, "int4"), is_tied=False)


def test_a_rule_that_is_not_known_is_refused() -> None:
    class Own:
        def full_shape(self, local: tuple[int, ...]) -> tuple[int, ...]:
            return local

        def cut(self, full: Tensor, rank: int, local: tuple[int, ...]) -> Tensor:
            return full

    rule: Shard = Own()
    layer = nn.Sequential(ColumnParallelLinear(6, 4, bias=False, shard=rule))
    with pytest.raises(UnsupportedError, match="cut for ranks by Own"):
        quantize_modules(layer, blockwise(1, 2, "int4"), is_tied=False)

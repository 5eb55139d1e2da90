from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nxdi.errors import ConfigError
from nxdi.modules.mlp import GatedMLP, activation
from nxdi.parallel_layers.groups import SimulatedWorld
from tiny_modules import drawn, filled, full_weights, rank_modules, tiny_config
from tolerances import SUM_ORDER_FP32


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected, rtol=SUM_ORDER_FP32, atol=SUM_ORDER_FP32)


def plain(weights: dict[str, Tensor], x: Tensor, has_bias: bool) -> Tensor:
    def project(name: str, x: Tensor) -> Tensor:
        bias = weights[f"{name}.bias"].double() if has_bias else None
        return F.linear(x, weights[f"{name}.weight"].double(), bias)

    gate = project("gate_proj", x.double())
    return project("down_proj", gate * torch.sigmoid(gate) * project("up_proj", x.double()))


@pytest.mark.parametrize("has_bias", [False, True])
def test_against_the_formula(has_bias: bool) -> None:
    mlp, x = filled(lambda: GatedMLP(tiny_config(), has_bias)), drawn(2, 3, 16)
    close(mlp(x), plain(mlp.state_dict(), x, has_bias))


def test_a_size_of_its_own() -> None:
    mlp, x = filled(lambda: GatedMLP(tiny_config(), intermediate_size=28)), drawn(2, 3, 16)
    assert {tuple(weight.shape) for weight in mlp.state_dict().values()} == {(28, 16), (16, 28)}
    close(mlp(x), plain(mlp.state_dict(), x, has_bias=False))


@pytest.mark.parametrize("tp", [2, 4, 8])  # 20 features: 8 ranks pad them to 24
@pytest.mark.parametrize("has_bias", [False, True])
def test_ranks_together(tp: int, has_bias: bool) -> None:
    def make() -> GatedMLP:
        return GatedMLP(tiny_config(), has_bias)

    full, x = full_weights(make), drawn(2, 3, 16)
    modules = rank_modules(make, tp, full)
    for got in SimulatedWorld(tp).run([lambda m=m: m(x) for m in modules]):
        close(got, plain(full, x, has_bias))


def test_ranks_with_pieces_of_the_sequence() -> None:
    def make() -> GatedMLP:
        return GatedMLP(tiny_config(tp_degree=2, sequence_parallel_enabled=True))

    full, x = full_weights(make), drawn(2, 4, 16)
    pieces = zip(rank_modules(make, 2, full), x.chunk(2, dim=1), strict=True)
    got = SimulatedWorld(2).run([lambda m=m, part=part: m(part) for m, part in pieces])
    close(torch.cat(got, dim=1), plain(full, x, has_bias=False))


@pytest.mark.parametrize("name", ["silu", "gelu", "relu", "gelu_pytorch_tanh"])
def test_activations_are_those_of_transformers(name: str) -> None:
    from transformers.activations import ACT2FN

    x = 3 * drawn(100)
    torch.testing.assert_close(activation(name)(x), ACT2FN[name](x))


def test_unknown_activation() -> None:
    with pytest.raises(ConfigError, match=r"activation 'mish' is not known; known are \['gelu',"):
        GatedMLP(tiny_config({"hidden_act": "mish"}))

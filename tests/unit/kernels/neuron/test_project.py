"""Projections and MLPs on a Neuron device: which kernel an option chooses, and equal results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nxdi.config import kernel_options
from nxdi.errors import UnsupportedError
from nxdi.kernels.neuron import project  # noqa: F401  registers its kernels
from nxdi.kernels.registry import Choice, named_layers, platform
from nxdi.modules.attention.projections import OutputProjection, QKVProjection
from nxdi.modules.kernel_weights import turn_weights
from nxdi.modules.mlp import GatedMLP
from nxdi.parallel_layers.groups import SimulatedWorld
from nxdi.parallel_layers.sharding import HeadShard, plan_heads
from tiny_modules import drawn, full_weights, rank_modules, tiny_config
from tolerances import NKI

SIZES = {"hidden_size": 128, "intermediate_size": 200}
BF16 = torch.bfloat16
Make = Callable[[Any], nn.Module]


def make_mlp(config: Any, bias: bool = False) -> nn.Module:
    return GatedMLP(config, bias)


def make_qkv(config: Any) -> nn.Module:
    sizes = {"hidden_size": 128, "head_dim": 16, "num_heads": 4, "num_key_value_heads": 2}
    layout = plan_heads(4, 2, config.neuron_config.tp_degree)
    return QKVProjection(config.neuron_config, layout=layout, bias=True, **sizes)


def make_output(config: Any) -> nn.Module:
    heads = plan_heads(4, 2, config.neuron_config.tp_degree).q
    shard = HeadShard(1, heads, 32, 4)
    return OutputProjection(128, 96, input_is_parallel=True, dtype=BF16, shard=shard)


def config_of(tp: int = 1, **options: Any) -> Any:
    names = {"backend": "neuron", "target": "trn2", "torch_dtype": BF16, "tp_degree": tp}
    return tiny_config(SIZES, **names, **options)


def ranks_of(make: Make, tp: int = 1, **options: Any) -> list[nn.Module]:
    """The module of each rank, with the weights that options ask for turned."""
    config = config_of(tp, **options)

    def made() -> nn.Module:
        module = make(config)
        turn_weights(module, config.neuron_config)
        return module

    full = {
        name: tensor.to(BF16) / 4
        for name, tensor in full_weights(lambda: make(config_of(**{}))).items()
    }
    return rank_modules(made, tp, full)


def run(modules: list[nn.Module], x: Tensor, **options: Any) -> tuple[list[Any], list[Choice]]:
    """The result of each rank, of which each has its part of x; and the first one's choices."""
    given, made = kernel_options(config_of(**options).neuron_config), []

    def call(module: nn.Module, part: Tensor) -> Any:
        with platform("neuron", given) as choices:
            result = module(part)
        made.append(sorted(choices))
        return result

    size = x.shape[-1] // len(modules)
    parts = x.split(size, -1) if isinstance(modules[0], OutputProjection) else [x] * len(modules)
    pairs = zip(modules, parts, strict=True)
    results = SimulatedWorld(len(modules)).run([lambda m=m, p=p: call(m, p) for m, p in pairs])
    return results, made[0]


def close(got: Any, expected: Any) -> None:
    if got is None:
        assert expected is None
    elif isinstance(got, Tensor):
        bound = NKI[BF16] * float(expected.abs().max())
        torch.testing.assert_close(got, expected, rtol=0, atol=bound)
    else:
        for one, other in zip(got, expected, strict=True):
            close(one, other)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize(
    ("make", "rows", "options", "name"),
    [
        (make_mlp, 3, {"mlp_kernel_enabled": True}, "mlp_decode"),
        (make_mlp, 130, {"mlp_kernel_enabled": True}, "mlp_prefill"),
        (make_mlp, 3, {"mlp_tkg_nki_kernel_enabled": True}, "mlp_decode"),
        (make_qkv, 3, {"qkv_kernel_enabled": True}, "qkv"),
        (make_qkv, 3, {"qkv_nki_kernel_enabled": True}, "qkv"),
        (make_output, 3, {"out_proj_kernel_enabled": True}, "attention_output"),
    ],
)
def test_an_option_chooses_its_kernel(
    make: Make, rows: int, options: dict[str, Any], name: str, tp: int
) -> None:
    x = drawn(2, rows, 128).to(BF16)
    expected, others = run(ranks_of(make, tp), x)
    got, choices = run(ranks_of(make, tp, **options), x, **options)
    assert [choice.chosen for choice in choices] == [f"nxdi_nki::{name}"]
    assert [choice.chosen for choice in others] == ["operators"]
    assert next(iter(options)) + "=False" in others[0].reason
    close(got, expected)


@pytest.mark.usefixtures("compiler")
def test_a_prompt_is_the_models_own_where_only_decoding_is_asked_for() -> None:
    options, x = {"mlp_tkg_nki_kernel_enabled": True}, drawn(1, 130, 128).to(BF16)
    got, (choice,) = run(ranks_of(make_mlp, **options), x, **options)
    assert choice.chosen == "operators"
    assert "mlp_kernel_enabled=False" in dict(choice.refused)["nxdi_nki::mlp_prefill"]
    close(got, run(ranks_of(make_mlp), x)[0])


@pytest.mark.usefixtures("compiler")
def test_exported_graphs_call_the_kernel() -> None:
    options, x = {"mlp_kernel_enabled": True}, drawn(2, 3, 128).to(BF16)
    (module,) = ranks_of(make_mlp, **options)
    with platform("neuron", options), torch.no_grad():
        graph = torch.export.export(module, (x,), strict=False)
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert "nxdi_nki.mlp_decode.default" in targets
    # Weights are read as they are kept: nothing is turned in the graph.
    assert not [target for target in targets if "permute" in target or "transpose" in target]
    close([graph.module()(x)], run(ranks_of(make_mlp), x)[0])


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("module", "options", "reason"),
    [
        (lambda config: make_mlp(config, True), {"mlp_kernel_enabled": True}, "has a bias"),
        (make_mlp, {"mlp_kernel_enabled": True, "hidden_act": "relu"}, "activation 'relu'"),
        (make_qkv, {"qkv_kernel_enabled": True, "torch_dtype": torch.float32}, "activations are"),
    ],
)
def test_what_is_asked_for_and_cannot_be_is_an_error(
    module: Make, options: dict[str, Any], reason: str
) -> None:
    names = dict(options)
    attributes = {"hidden_act": names.pop("hidden_act", "silu"), **SIZES}
    dtypes = {"torch_dtype": BF16, "backend": "neuron", "target": "trn2", **names}
    config = tiny_config(attributes, **dtypes)
    layers = nn.ModuleDict({"layer": module(config)})
    turn_weights(layers, config.neuron_config)
    with (
        platform("neuron", kernel_options(config.neuron_config)),
        named_layers(layers),
        pytest.raises(UnsupportedError, match="of layer cannot run nxdi_nki") as raised,
    ):
        layers["layer"](drawn(1, 2, 128).to(BF16))
    assert reason in str(raised.value)


@pytest.mark.usefixtures("compiler")
def test_weights_that_are_not_turned_are_declined() -> None:
    """As quantized ones: nothing turns them."""
    with pytest.raises(UnsupportedError, match="PlainWeight, not TurnedWeight"):
        run(ranks_of(make_mlp), drawn(1, 2, 128).to(BF16), mlp_kernel_enabled=True)


def test_without_the_sdk_asking_is_an_error() -> None:
    options = {"out_proj_kernel_enabled": True}
    modules = ranks_of(make_output, **options)
    with pytest.raises(UnsupportedError, match="nki is not installed"):
        run(modules, drawn(1, 2, 128).to(BF16), **options)


def test_elsewhere_options_change_nothing() -> None:
    config = tiny_config(mlp_kernel_enabled=True)
    module = GatedMLP(config)
    turn_weights(module, config.neuron_config)
    assert module.gate_proj.weight.shape == (20, 16)


def test_a_model_without_such_layers_is_an_error() -> None:
    neuron = config_of(qkv_nki_kernel_enabled=True).neuron_config
    with pytest.raises(UnsupportedError, match="qkv_nki_kernel_enabled=True, but the model has no"):
        turn_weights(GatedMLP(config_of()), neuron)

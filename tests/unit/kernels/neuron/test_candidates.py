"""Norms, rotation, routers and greedy tokens on a Neuron device: by which kernel, and right."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

from nki_calls import normal
from nxdi.errors import UnsupportedError
from nxdi.kernels.neuron import candidates  # noqa: F401  registers the kernels
from nxdi.kernels.registry import Choice, platform
from nxdi.modules.moe.router import Router
from nxdi.modules.moe.spec import MoESpec
from nxdi.modules.norm import RMSNorm, UnitOffsetRMSNorm
from nxdi.modules.rope import InterleavedRotaryEmbedding, RotaryEmbedding, turn_heads
from nxdi.modules.sampling import GreedySampler
from tolerances import NKI


def make_router(**options: Any) -> Router:
    router = Router(MoESpec(128, 64, 8, 2, **options), torch.float32)
    for at, parameter in enumerate(router.parameters()):
        parameter.data.copy_(normal(Random(at), *parameter.shape))
    return router


def run_on_neuron(call: Any) -> tuple[Any, list[Choice]]:
    with platform("neuron") as choices:
        result = call()
    return result, sorted(choices)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("kind", [RMSNorm, UnitOffsetRMSNorm])
def test_a_norm(kind: type[RMSNorm]) -> None:
    module, x = kind(128), normal(Random(0), 2, 3, 128)
    module.weight.data.copy_(normal(Random(1), 128))
    result, choices = run_on_neuron(lambda: module(x))
    assert choices == [Choice("rmsnorm", "nxdi_nki::rmsnorm")]
    torch.testing.assert_close(result, module(x), rtol=NKI[torch.float32], atol=1e-6)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("dim", [64, 16])
def test_rotary_embedding(dim: int) -> None:
    module, places = RotaryEmbedding(dim), torch.tensor([[0, 1, 2], [7, 8, 9]])
    q, k = normal(Random(0), 2, 4, 3, 64), normal(Random(1), 2, 1, 3, 64)
    angles = module(q, places)
    results, choices = run_on_neuron(lambda: turn_heads(module, q, k, *angles))
    assert choices == [Choice("rope", "nxdi_nki::rope")]
    for result, expected in zip(results, turn_heads(module, q, k, *angles), strict=True):
        torch.testing.assert_close(result, expected, rtol=NKI[torch.float32], atol=1e-6)


@pytest.mark.usefixtures("compiler")
def test_rotation_of_neighbours_stays_the_model_s() -> None:
    module, places = InterleavedRotaryEmbedding(64), torch.arange(3)[None]
    q = normal(Random(0), 1, 4, 3, 64)
    (result, _), (choice,) = run_on_neuron(lambda: turn_heads(module, q, q, *module(q, places)))
    assert "InterleavedRotaryEmbedding turns no halves" in choice.reason
    assert torch.equal(result, module.rotate(q, *module(q, places)))


@pytest.mark.usefixtures("compiler")
def test_greedy_tokens() -> None:
    logits = normal(Random(0), 5, 333)
    logits[1, [7, 9]] = 100
    tokens, choices = run_on_neuron(lambda: GreedySampler()(logits, None, None))
    assert choices == [Choice("argmax", "nxdi_nki::sampling")]
    assert torch.equal(tokens, GreedySampler()(logits, None, None))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": False},
        {"act_over_top_k": True, "normalize": False},
        {"router_act": "sigmoid", "scaling": 2.5},
        {"router_act": "sigmoid", "act_over_top_k": True, "normalize": False},
    ],
)
def test_a_router(options: dict[str, Any]) -> None:
    router, x = make_router(**options), normal(Random(5), 6, 128, scale=0.1)
    routing, choices = run_on_neuron(lambda: router(x))
    assert choices == [Choice("route", "nxdi_nki::router_topk")]
    expected = router(x)
    assert torch.equal(routing.experts, expected.experts)
    torch.testing.assert_close(routing.weights, expected.weights, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("compiler")
def test_an_option_asks_for_the_router_s_kernel_or_forbids_it() -> None:
    name, x = "router_topk_nki_kernel_enabled", normal(Random(5), 6, 128)
    with platform("neuron", {name: False}) as choices:
        make_router()(x)
    assert [choice.chosen for choice in choices] == ["operators"]
    with platform("neuron", {name: True}) as choices:
        make_router()(x)
        with pytest.raises(UnsupportedError, match=f"{name}=True, but route.*has a bias"):
            make_router(router_bias=True)(x)
    assert [choice.chosen for choice in choices] == ["nxdi_nki::router_topk"]


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"router_bias": True}, "the router has a bias"),
        ({"selection_bias": True}, "a bias for the selection"),
        ({"num_groups": 2, "top_groups": 1}, "groups of experts"),
    ],
)
def test_a_router_of_another_kind_stays_the_model_s(options: Any, reason: str) -> None:
    router, x = make_router(**options), normal(Random(5), 6, 128)
    routing, (choice,) = run_on_neuron(lambda: router(x))
    assert choice.chosen == "operators"
    assert reason in choice.reason
    assert torch.equal(routing.weights, router(x).weights)


@pytest.mark.usefixtures("compiler")
def test_weights_of_another_dtype_stay_the_model_s() -> None:
    router = make_router()
    _, (choice,) = run_on_neuron(lambda: router(normal(Random(5), 6, 128, dtype=torch.bfloat16)))
    assert "weights torch.float32" in choice.reason


def test_without_the_sdk_it_is_said_so() -> None:
    _, (choice,) = run_on_neuron(lambda: GreedySampler()(torch.zeros(1, 9), None, None))
    assert (choice.chosen, choice.is_reference) == ("operators", False)
    assert "not installed" in choice.reason


def test_elsewhere_nothing_is_noted() -> None:
    with platform("cpu") as choices:
        GreedySampler()(torch.zeros(1, 9), None, None)
    assert choices == set()

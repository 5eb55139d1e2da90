from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nxdi.config import InferenceConfig, NeuronConfig
from nxdi.errors import ConfigError
from nxdi.modules.context import running
from nxdi.modules.moe import MoE, MoESpec, make_moe
from nxdi.modules.moe.capacity import choose_capacity
from nxdi.modules.moe.router import Router
from nxdi.parallel_layers.groups import SimulatedWorld
from nxdi.parallel_layers.parallel_state import tensor_parallel
from nxdi.types import Phase
from tiny_modules import drawn, empty_cache, layer_context, rank_modules, tiny_config
from tiny_moe import (
    SPEC,
    SWIGLU,
    close,
    options_for,
    plain_sum,
    run_ranks,
    spec_with,
    weights_of,
)

BLOCKS = {"blockwise_matmul_config": {"block_size": 2}}
PHASES = (Phase.PREFILL, Phase.DECODE)


def expected(spec: MoESpec, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    router = Router(spec, torch.float32)
    own = {name.removeprefix("router."): weights[name] for name in weights if "router" in name}
    router.load_state_dict(own)
    tokens = x.flatten(0, 1)
    return plain_sum(spec, weights, tokens, router(tokens)).view(x.shape)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("formula", [{}, SWIGLU])
@pytest.mark.parametrize(
    "options",
    [
        {},
        BLOCKS,
        {"tp_degree": 2},
        {"tp_degree": 8},  # 12 values of width: 8 ranks pad them to 16
        {"tp_degree": 2, "moe_ep_degree": 2, **BLOCKS},
        {"tp_degree": 4, "moe_ep_degree": 4, **BLOCKS},
        {"tp_degree": 8, "moe_ep_degree": 8},
        {"tp_degree": 4, "moe_tp_degree": 2, "moe_ep_degree": 2},
        {"tp_degree": 4, "moe_ep_degree": 4, "ep_dispatch_cc_option": "RS_AG"},
        {"tp_degree": 4, "moe_ep_degree": 4, "ep_dispatch_cc_option": "AG_AR"},
        {
            "tp_degree": 4,
            "hybrid_sharding_config": {"moe_cte_tp_degree": 4, "moe_tkg_ep_degree": 4},
        },
        {
            "tp_degree": 4,
            "hybrid_sharding_config": {"moe_cte_ep_degree": 4, "moe_tkg_tp_degree": 4},
        },
    ],
)
def test_ranks_together(options: dict[str, Any], formula: dict[str, Any], phase: Phase) -> None:
    spec = spec_with(**formula)
    weights = weights_of(spec)
    for x in (drawn(2, 9, 16), drawn(1, 1, 16)):
        for got in run_ranks(spec, weights, x, phase, **options):
            close(got, expected(spec, weights, x))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("experts", [[0, 1, 2], [5, 6, 7]])
def test_ranks_without_a_token(experts: list[int], phase: Phase) -> None:
    """All tokens go to one rank's experts, and to none of the others'."""
    spec = spec_with(router_bias=True)
    weights = weights_of(spec)
    weights["router.weight"] = torch.zeros(8, 16)
    weights["router.bias"] = torch.zeros(8).index_fill(0, torch.tensor(experts), 5.0)
    for x in (drawn(2, 9, 16), drawn(1, 1, 16)):
        for got in run_ranks(spec, weights, x, phase, tp_degree=2, moe_ep_degree=2, **BLOCKS):
            close(got, expected(spec, weights, x))


@pytest.mark.parametrize("phase", PHASES)
def test_ties_on_every_rank(phase: Phase) -> None:
    weights = weights_of(SPEC)
    weights["router.weight"] = torch.zeros(8, 16)
    x = drawn(2, 9, 16)
    for got in run_ranks(SPEC, weights, x, phase, tp_degree=4, moe_ep_degree=4, **BLOCKS):
        close(got, expected(SPEC, weights, x))


def test_pieces_of_the_sequence() -> None:
    options = {"tp_degree": 2, "moe_ep_degree": 2, "sequence_parallel_enabled": True}
    weights, x = weights_of(SPEC), drawn(2, 4, 16)
    modules = rank_modules(lambda: MoE(SPEC, options_for(**options)), 2, weights)
    pieces = zip(modules, x.chunk(2, dim=1), strict=True)
    got = SimulatedWorld(2).run([lambda m=m, part=part: m(part) for m, part in pieces])
    close(torch.cat(got, dim=1), expected(SPEC, weights, x))


@pytest.mark.parametrize("has_gate", [False, True])
@pytest.mark.parametrize("tp", [1, 2, 4])  # 10 values of width: 4 ranks pad them to 12
def test_an_expert_that_sees_every_token(tp: int, has_gate: bool) -> None:
    spec = spec_with(shared_size=10, has_shared_gate=has_gate)
    weights, x = weights_of(spec), drawn(2, 3, 16)
    shared = {name: weights[f"shared_experts.{name}_proj.weight"].double() for name in _PROJECTIONS}
    gate = x.double() @ shared["gate"].t()
    own = (gate * torch.sigmoid(gate) * (x.double() @ shared["up"].t())) @ shared["down"].t()
    if has_gate:
        own = own * torch.sigmoid(x.double() @ weights["shared_experts.gate"].double().t())
    for got in run_ranks(spec, weights, x, tp_degree=tp):
        close(got, expected(spec, weights, x) + own)


_PROJECTIONS = ("gate", "up", "down")


def test_padding_takes_nobodys_place() -> None:
    """A row of padding before another row: with room for few, it would push tokens out."""
    spec, factor = spec_with(top_k=1, router_bias=True), 0.5
    weights = weights_of(spec)
    weights["router.weight"] = torch.zeros(8, 16)  # all go to expert 3
    weights["router.bias"] = torch.zeros(8).index_fill(0, torch.tensor([3]), 5.0)
    (module,) = rank_modules(lambda: MoE(spec, options_for(capacity_factor=factor)), 1, weights)
    positions = torch.tensor([[0, -1, -1, -1, -1, -1, -1, -1], [0, 1, 2, 3, 4, 5, 6, 7]])
    capacity = choose_capacity(16, 1, 8, factor)
    assert capacity == 1
    x = drawn(2, 8, 16)
    ctx = layer_context(Phase.PREFILL, positions, empty_cache_of(), 8)
    with running(lambda module: ctx):
        got = module(x)
    assert float(got[0, 0].abs().max()) > 0
    assert float(got[1].abs().max()) == 0
    late = layer_context(Phase.PREFILL, positions.flip(0), empty_cache_of(), 8)
    with running(lambda module: late):
        got = module(x.flip(0))
    close(got[0, 0], expected(spec, weights, x.flip(0))[0, 0])
    assert float(got[0, 1:].abs().max()) == float(got[1].abs().max()) == 0


def empty_cache_of() -> Any:
    from nxdi.modules.kvcache import ContiguousCache

    return empty_cache(ContiguousCache(1, 8, (4, 4)), 2)


def test_hybrid_sharding_reads_each_weight_once_from_the_checkpoint() -> None:
    hybrid = {"moe_cte_tp_degree": 2, "moe_tkg_ep_degree": 2}
    with tensor_parallel(2):
        module = MoE(SPEC, options_for(tp_degree=2, hybrid_sharding_config=hybrid))
    state = {f"mlp.{name}": tensor for name, tensor in weights_of(SPEC).items()}
    module.preshard_hook(state, "mlp.weight")
    for name in ("gate_up_proj", "down_proj"):
        assert state[f"mlp.decode_experts.{name}"] is state[f"mlp.experts.{name}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tp_degree": 3, "moe_ep_degree": 3}, "8 experts are not divisible by .* degree of 3"),
        ({"tp_degree": 3, "ep_dispatch_cc_option": "RS_AG"}, "hidden_size=16 is not divisible"),
    ],
)
def test_impossible_spreading(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rank_modules(lambda: MoE(SPEC, options_for(**options)), 3, {})


def test_plain_options_are_refused() -> None:
    config: InferenceConfig = tiny_config()
    assert type(config.neuron_config) is NeuronConfig
    with pytest.raises(ConfigError, match="needs a MoENeuronConfig, not NeuronConfig"):
        make_moe(config, SPEC)

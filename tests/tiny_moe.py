"""A small mixture of experts, and what it computes, written plainly: token by token, in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nxdi.config import MoENeuronConfig
from nxdi.modules.moe import MoE, MoESpec
from nxdi.modules.moe.router import Routing
from nxdi.parallel_layers.groups import SimulatedWorld
from nxdi.types import Phase
from tiny_modules import full_weights, rank_modules
from tolerances import SUM_ORDER_FP32

SPEC = MoESpec(hidden_size=16, intermediate_size=12, num_experts=8, top_k=3)
SWIGLU: dict[str, Any] = {
    "experts_bias": True,
    "glu_type": "swiglu",
    "hidden_act_scaling_factor": 1.702,
    "hidden_act_bias": 1.0,
    "gate_clamp_upper_limit": 1.0,
    "up_clamp_upper_limit": 1.0,
    "up_clamp_lower_limit": -1.0,
}


def spec_with(**changes: Any) -> MoESpec:
    """SPEC with changes."""
    return dataclasses.replace(SPEC, **changes)


def options_for(phase: Phase = Phase.PREFILL, **options: Any) -> MoENeuronConfig:
    """The options of the modules of one phase, in float32."""
    made = MoENeuronConfig(**{"torch_dtype": torch.float32, **options})
    found = made.for_phase(phase, "eager")
    assert isinstance(found, MoENeuronConfig)
    return found


def weights_of(spec: MoESpec, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of all experts and the router."""
    return full_weights(lambda: MoE(spec, options_for()), seed)


def run_ranks(
    spec: MoESpec,
    weights: Mapping[str, Tensor],
    x: Tensor,
    phase: Phase = Phase.PREFILL,
    **options: Any,
) -> list[Tensor]:
    """What each rank returns for x [B, S, H]."""
    tp = options.get("tp_degree", 1)
    modules = rank_modules(lambda: MoE(spec, options_for(phase, **options)), tp, _doubled(weights))
    if tp == 1:
        return [modules[0](x)]
    return SimulatedWorld(tp).run([lambda m=m: m(x) for m in modules])


def _doubled(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With hybrid sharding the experts' weights have a second name."""
    again = {
        name.replace("experts.", "decode_experts.", 1): tensor
        for name, tensor in weights.items()
        if name.startswith("experts.")
    }
    return {**weights, **again}


def plain_experts(spec: MoESpec, weights: Mapping[str, Tensor], x: Tensor, expert: int) -> Tensor:
    """One expert's result for one token [H], float64."""

    def project(name: str, x: Tensor) -> Tensor:
        y = x.double() @ weights[f"experts.{name}"][expert].double()
        return y + weights[f"experts.{name}_bias"][expert] if spec.experts_bias else y

    gate, up = project("gate_up_proj", x).chunk(2)
    if spec.gate_clamp_upper_limit is not None:
        gate = gate.clamp(max=spec.gate_clamp_upper_limit)
    if spec.up_clamp_upper_limit is not None:
        up = up.clamp(spec.up_clamp_lower_limit, spec.up_clamp_upper_limit)
    scale = spec.hidden_act_scaling_factor if spec.glu_type == "swiglu" else 1.0
    offset = spec.hidden_act_bias if spec.glu_type == "swiglu" else 0.0
    return project("down_proj", gate * torch.sigmoid(scale * gate) * (up + offset))


def plain_sum(spec: MoESpec, weights: Mapping[str, Tensor], x: Tensor, routing: Routing) -> Tensor:
    """x [T, H] -> the weighed sum over each token's experts, float64; expert -1 is none."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token, (row, experts) in enumerate(zip(routing.weights, routing.experts, strict=True)):
        for weight, expert in zip(row.double(), experts.tolist(), strict=True):
            if expert < 0:
                continue
            if spec.early_expert_affinity_modulation:
                out[token] += plain_experts(spec, weights, x[token] * weight, expert)
            else:
                out[token] += weight * plain_experts(spec, weights, x[token], expert)
    return out


def close(got: Tensor, expected: Tensor) -> None:
    """Equal but for the order of sums."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(
        got.double(), expected, rtol=SUM_ORDER_FP32, atol=SUM_ORDER_FP32 * scale
    )


def routing_of(rows: list[list[int]], seed: int = 0) -> Routing:
    """These experts for each token, with random weights."""
    experts = torch.tensor(rows, dtype=torch.int32)
    generator = torch.Generator().manual_seed(seed)
    return Routing(0.1 + torch.rand(experts.shape, generator=generator), experts)

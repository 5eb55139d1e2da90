"""What computes the chosen experts of a few tokens on a Neuron device."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nxdi.kernels import nki
from nxdi.kernels.neuron.op import load_op, nki_kernel
from nxdi.kernels.ops import ExpertsCall
from nxdi.kernels.registry import register


def _run(dispatch: Any, experts: Any, x: Tensor, routing: Any, call: ExpertsCall) -> Tensor:
    result: Tensor = load_op("moe_decode")(
        x, experts.gate_up_proj, experts.down_proj, routing.weights, experts.own(routing.experts)
    )
    return result


def _declines(call: ExpertsCall) -> str | None:
    if call.peculiarity is not None:
        return call.peculiarity
    if not _is_meant(call):
        return (
            f"{call.num_choices} choices of {call.num_experts} experts; all of them at once read "
            "no weight twice"
        )
    module = nki.load_kernels("moe_decode")
    experts, hidden, inner = call.num_experts, call.hidden_size, call.intermediate_size
    shapes = (experts, hidden, 2 * inner), (experts, inner, hidden)
    choices = call.num_tokens, call.top_k
    found = module.Call((call.num_tokens, hidden), *shapes, choices, call.dtype)
    reason: str | None = module.supports(found)
    return reason


def _is_meant(call: ExpertsCall) -> bool:
    return call.num_choices < call.num_experts


register(
    "chosen_experts",
    "neuron",
    nki_kernel("moe_decode", _run, _declines, ("expert_mlp_nki_kernel_enabled",), _is_meant),
)

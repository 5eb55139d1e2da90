"""What chooses experts on a Neuron device."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nxdi.kernels import nki
from nxdi.kernels.neuron.op import load_op, nki_kernel
from nxdi.kernels.ops import RouteCall
from nxdi.kernels.registry import register


def _run(router: Any, x: Tensor, call: RouteCall) -> tuple[Tensor, Tensor]:
    # A softmax over the chosen logits is the share in their sum.
    normalize = call.normalize or (call.act_over_top_k and call.act == "softmax")
    weights, experts = load_op("router_topk")(x, router.weight, call.top_k, call.act, normalize)
    return weights, experts


def _declines(call: RouteCall) -> str | None:
    if call.peculiarity is not None:
        return f"the router has {call.peculiarity}"
    if call.dtype != call.weight_dtype:
        return f"activations are {call.dtype}, weights {call.weight_dtype}"
    module = nki.load_kernels("router_topk")
    shapes = (call.num_tokens, call.hidden_size), (call.num_experts, call.hidden_size)
    reason: str | None = module.supports(module.Call(*shapes, call.dtype, call.top_k, call.act))
    return reason


register(
    "route",
    "neuron",
    nki_kernel("router_topk", _run, _declines, ("router_topk_nki_kernel_enabled",)),
)

"""The mixture of experts at NxDI's path, and as NxDI's layers call it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nxdi.config import InferenceConfig, MoENeuronConfig
from nxdi.modules.moe.block import MoE, moe_options
from nxdi.modules.moe.spec import MoESpec


class NxdiMoE(MoE):
    """The mixture with NxDI's call: a tuple as its result, and a norm that it may apply itself."""

    def __init__(
        self, spec: MoESpec, neuron: MoENeuronConfig, rmsnorm: nn.Module | None = None
    ) -> None:
        super().__init__(spec, neuron)
        # In a tuple: the layer has the norm already, under the name that checkpoints give it.
        self._norm = (rmsnorm,)

    def forward(  # type: ignore[override]  # NxDI's form: the tuple, where MoE has one tensor
        self, hidden_states: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[Tensor]:
        (norm,) = self._norm
        return (super().forward(hidden_states if norm is None else norm(hidden_states)),)


def initialize_moe_module(
    config: InferenceConfig,
    rmsnorm: nn.Module | None = None,
    init_tkg_module: bool = False,
    apply_act_fn_over_topk: bool = False,
    router_bias: bool = False,
    experts_bias: bool = False,
) -> NxdiMoE:
    """The mixture that a config describes under NxDI's names.

    Read are num_local_experts, num_experts_per_tok, hidden_size, intermediate_size (of one expert),
    hidden_act and n_shared_experts, and of the options router_config and
    normalize_top_k_affinities. rmsnorm: applied to what comes in. init_tkg_module: there is one
    module for all phases.
    Raises: ConfigError as `make_moe`.
    """
    options = moe_options(config)
    described: dict[str, Any] = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_experts": config.num_local_experts,
        "top_k": config.num_experts_per_tok,
        "hidden_act": config.hidden_act,
        "router_act": options.router_config.act_fn,
        "act_over_top_k": apply_act_fn_over_topk,
        "router_bias": router_bias,
        "normalize": options.normalize_top_k_affinities,
        "experts_bias": experts_bias,
        "shared_size": config.intermediate_size * (config.n_shared_experts or 0),
    }
    return NxdiMoE(MoESpec(**described).with_options(options), options, rmsnorm)

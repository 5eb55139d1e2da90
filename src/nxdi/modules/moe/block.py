"""The mixture of experts as one block of a decoder layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from nxdi.config import InferenceConfig, MoENeuronConfig
from nxdi.errors import ConfigError
from nxdi.modules.moe.blockwise import Blockwise
from nxdi.modules.moe.capacity import CapacityFactor
from nxdi.modules.moe.checkpoint import rename_from_nxdi
from nxdi.modules.moe.combine import Whole, make_combine
from nxdi.modules.moe.exchange import (
    Exchange,
    OwnPositions,
    SharedAcrossPieces,
    exchanges_tokens,
    places_per_expert,
)
from nxdi.modules.moe.experts import Experts
from nxdi.modules.moe.modulation import Early, Late
from nxdi.modules.moe.router import Router, Routing
from nxdi.modules.moe.selective import SelectiveLoading
from nxdi.modules.moe.shared import SharedExperts
from nxdi.modules.moe.spec import MoESpec
from nxdi.modules.sequence import SequenceGather
from nxdi.parallel_layers.sharding import ExpertLayout
from nxdi.types import Phase

Dispatch = Callable[[Experts, Tensor, Routing], Tensor]


class MoE(nn.Module):
    """Route, compute the chosen experts, add the shared one, sum over ranks.

    Shapes: x [B, S, H] -> same (S / tp with sequence parallelism).
    `experts` are spread as prefill wants them; if decode wants it otherwise, its graphs use
    `decode_experts`. Both are weights of every graph, so that all graphs share one set.
    """

    def __init__(self, spec: MoESpec, neuron: MoENeuronConfig) -> None:
        super().__init__()
        dtype = neuron.torch_dtype
        exchanges = exchanges_tokens(neuron)
        self.gather = SequenceGather(neuron.sequence_parallel_enabled and not exchanges)
        self.router = Router(spec, dtype)
        layouts = [
            ExpertLayout(spec.num_experts, *neuron.moe_degrees(phase))
            for phase in (Phase.PREFILL, Phase.DECODE)
        ]
        self.experts = Experts(spec, layouts[0], dtype)
        self.decode_experts = None if layouts[0] == layouts[1] else Experts(spec, layouts[1], dtype)
        self.uses_decode_experts = not neuron.is_prefill_stage and layouts[0] != layouts[1]
        self.dispatch = choose_dispatch(spec, neuron)
        # Where there is a limit, padding would take the places of other rows' tokens.
        has_limit = neuron.is_prefill_stage and neuron.capacity_factor is not None
        self.positions = OwnPositions(exchanges) if has_limit else None
        shared = SharedAcrossPieces if exchanges else SharedExperts
        self.shared_experts = shared(spec, dtype) if spec.shared_size else None
        self.combine = Whole() if exchanges else make_combine(neuron, spec.hidden_size)

    def preshard_hook(self, model_state_dict: dict[str, Tensor], prefix: str) -> None:
        """Rename tensors in a full checkpoint; prefix: this module's path plus "weight"."""
        prefix = prefix.removesuffix("weight")
        rename_from_nxdi(model_state_dict, prefix)
        if self.decode_experts is not None:
            for name, _ in self.experts.named_parameters():
                if f"{prefix}experts.{name}" in model_state_dict:
                    full = model_state_dict[f"{prefix}experts.{name}"]
                    model_state_dict[f"{prefix}decode_experts.{name}"] = full

    def forward(self, x: Tensor) -> Tensor:
        x = self.gather(x)
        tokens = x.flatten(0, 1)
        routing = self.router(tokens)
        if self.positions is not None:
            routing = routing.without(self.positions() < 0)
        y = self.dispatch(self._running_experts(), tokens, routing)
        if self.shared_experts is not None:
            y = y + self.shared_experts(tokens)
        out: Tensor = self.combine(y.view(x.shape))
        return out

    def _running_experts(self) -> Experts:
        experts = self.decode_experts if self.uses_decode_experts else self.experts
        assert experts is not None
        return experts


def choose_dispatch(spec: MoESpec, neuron: MoENeuronConfig) -> Dispatch:
    """How tokens reach experts in the phase that `neuron` is for."""
    modulation = Early() if spec.early_expert_affinity_modulation else Late()
    if exchanges_tokens(neuron):
        return Exchange(CapacityFactor(modulation, places_per_expert(spec, neuron)))
    if not neuron.is_prefill_stage:
        return SelectiveLoading(modulation)
    if neuron.capacity_factor is not None:
        return CapacityFactor(modulation, neuron.capacity_factor)
    return Blockwise(modulation, neuron.blockwise_matmul_config.block_size)


def make_moe(config: InferenceConfig, spec: MoESpec) -> MoE:
    """The mixture of a model, run as its options say.

    Raises: ConfigError if the options are not a MoENeuronConfig, or contradict the model.
    """
    return MoE(spec.with_options(moe_options(config)), moe_options(config))


def moe_options(config: InferenceConfig) -> MoENeuronConfig:
    """Raises: ConfigError unless the options are those of a mixture of experts."""
    neuron = config.neuron_config
    if not isinstance(neuron, MoENeuronConfig):
        raise ConfigError(
            f"a mixture of experts needs a MoENeuronConfig, not {type(neuron).__name__}; use "
            "nxdi.models.config.MoENeuronConfig"
        )
    return neuron

"""What a mixture of experts computes, as data: the model's part of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from nxdi.config import MoENeuronConfig, RouterConfig
from nxdi.config.keywords import changed_fields
from nxdi.errors import ConfigError


@dataclass(frozen=True)
class MoESpec:
    """The sizes and the formulas of one mixture of experts.

    router_act: of the scores, "softmax" or "sigmoid". act_over_top_k: it is applied to the chosen
    logits only. selection_bias: added to the scores to choose, not to weigh. num_groups: experts
    are chosen from the best `top_groups` groups. normalize: the weights of a token sum to 1, before
    they are multiplied by `scaling`. shared_size: the width of an expert that sees every token;
    has_shared_gate: its result is weighed by a sigmoid. Other names are those of NxDI's options.
    Raises: ConfigError for sizes that contradict each other.
    """

    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    hidden_act: str = "silu"
    router_act: str = "softmax"
    act_over_top_k: bool = False
    router_bias: bool = False
    selection_bias: bool = False
    num_groups: int = 1
    top_groups: int = 1
    normalize: bool = True
    scaling: float = 1.0
    experts_bias: bool = False
    glu_type: str = "glu"
    hidden_act_scaling_factor: float = 1.0
    hidden_act_bias: float = 0.0
    gate_clamp_upper_limit: float | None = None
    gate_clamp_lower_limit: float | None = None
    up_clamp_upper_limit: float | None = None
    up_clamp_lower_limit: float | None = None
    early_expert_affinity_modulation: bool = False
    shared_size: int = 0
    has_shared_gate: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(
                f"num_experts_per_tok={self.top_k} is not between 1 and the {self.num_experts} "
                "experts of the model; correct config.json"
            )
        if self.num_experts % self.num_groups or not 1 <= self.top_groups <= self.num_groups:
            raise ConfigError(
                f"{self.top_groups} of {self.num_groups} groups of {self.num_experts} experts: the "
                "groups must be equal, and as many or fewer chosen; correct config.json"
            )
        if self.top_k > self.top_groups * (self.num_experts // self.num_groups):
            raise ConfigError(
                f"num_experts_per_tok={self.top_k} is more than the experts of {self.top_groups} "
                f"of {self.num_groups} groups; correct config.json"
            )

    def with_options(self, options: MoENeuronConfig) -> MoESpec:
        """The same with every option that was given another value than its default."""
        given: dict[str, Any] = {f.name: getattr(options, f.name) for f in changed_fields(options)}
        own = {f.name for f in fields(self)}
        changes = {name: value for name, value in given.items() if name in own}
        if options.router_config != RouterConfig():
            changes["router_act"] = options.router_config.act_fn
        if not options.normalize_top_k_affinities:
            changes["normalize"] = False
        return replace(self, **changes)

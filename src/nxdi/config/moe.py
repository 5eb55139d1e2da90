"""How mixtures of experts are run, under NxDI's option names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from nxdi.config.keywords import KeywordConfig, to_torch_dtype
from nxdi.config.neuron import NeuronConfig
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.types import Phase

ROUTER_ACTIVATIONS = ("softmax", "sigmoid")
GLU_TYPES = ("glu", "swiglu")


@dataclass(init=False, repr=False, eq=False)
class RouterConfig(KeywordConfig):
    """How scores are made of the router's logits.

    Raises: ConfigError for an activation that is not known; UnsupportedError for a dtype other than
        float32, in which experts are always chosen.
    """

    dtype: torch.dtype = torch.float32
    act_fn: str = ROUTER_ACTIVATIONS[0]

    def __init__(self, **options: Any) -> None:
        if "dtype" in options:
            options["dtype"] = to_torch_dtype(options["dtype"])
        super().__init__(**options)
        if self.dtype != torch.float32:
            raise UnsupportedError(
                f"router_config: dtype={self.dtype} is refused: experts are chosen in float32, "
                "where fewer of them tie; leave it out"
            )
        if self.act_fn not in ROUTER_ACTIVATIONS:
            raise ConfigError(
                f"router_config: act_fn={self.act_fn!r} is not one of "
                f"{', '.join(ROUTER_ACTIVATIONS)}"
            )


@dataclass(init=False, repr=False, eq=False)
class BlockwiseMatmulConfig(KeywordConfig):
    """Prefill in blocks of `block_size` tokens with one expert each.

    The other options choose among NxDI's kernels and have no effect.
    Raises: ConfigError for an unknown keyword or a size below 1.
    """

    block_size: int = 512
    use_block_parallel: bool = False
    block_sharding_strategy: Any = None
    skip_dma_token: bool = False
    skip_dma_weight: bool = False
    logical_nc_config: int = 1
    parallelize_token_to_block_mapping: bool = True
    optimized_block_to_token_mapping: bool = True
    use_torch_block_wise: bool = False
    always_augment_inputs_for_blockwise_matmul: bool = False
    use_shard_on_block_dynamic_while: bool = False
    use_shard_on_intermediate_dynamic_while: bool = False
    num_static_blocks: int | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.block_size < 1:
            raise ConfigError(
                f"blockwise_matmul_config: block_size={self.block_size} must be at least 1"
            )


@dataclass(init=False, repr=False, eq=False)
class HybridShardingConfig(KeywordConfig):
    """Other degrees for the experts in prefill (cte) than in decode (tkg).

    Each rank then holds both parts of the experts' weights.
    """

    moe_cte_tp_degree: int = 1
    moe_cte_ep_degree: int = 1
    moe_tkg_tp_degree: int = 1
    moe_tkg_ep_degree: int = 1


@dataclass(init=False, repr=False, eq=False)
class MoENeuronConfig(NeuronConfig):
    """NeuronConfig of a mixture of experts.

    Which experts there are and how tokens choose among them is a matter of the model. An option
    that says otherwise than its default (glu_type, the limits, router_config, ...) wins over it.
    Raises: as NeuronConfig.
    """

    # How tokens reach experts.
    capacity_factor: float | None = None  # prefill: most tokens of an expert, in equal shares
    blockwise_matmul_config: Any = field(default_factory=BlockwiseMatmulConfig)
    moe_mask_padded_tokens: bool = False
    use_index_calc_kernel: bool = False

    # Ranks. 1 and 1 mean tp_degree and 1.
    moe_tp_degree: int = 1
    moe_ep_degree: int = 1
    hybrid_sharding_config: Any = None  # a HybridShardingConfig, or a dictionary of its options

    # What experts and router compute.
    glu_mlp: bool = True
    glu_type: str = GLU_TYPES[0]
    hidden_act_scaling_factor: float = 1.0
    hidden_act_bias: float = 0.0
    gate_clamp_upper_limit: float | None = None
    gate_clamp_lower_limit: float | None = None
    up_clamp_upper_limit: float | None = None
    up_clamp_lower_limit: float | None = None
    early_expert_affinity_modulation: bool = False
    disable_normalize_top_k_affinities: bool = False
    router_config: Any = field(default_factory=RouterConfig)

    # Experts that see every token.
    fused_shared_experts: bool = False
    shared_experts_sequence_parallel_enabled: bool = False
    transpose_shared_experts_weights: bool = False

    # What a layer returns beside its result.
    return_expert_index: bool = False
    return_router_logits: bool = False

    def __init__(self, **options: Any) -> None:
        # NxDI's default of these two is none, and means the same.
        for name in ("blockwise_matmul_config", "router_config"):
            if not options.get(name, True):
                del options[name]
        super().__init__(**options)
        for name, cls in _NESTED.items():
            value = getattr(self, name)
            if isinstance(value, dict):
                setattr(self, name, cls(**value))
            elif value is not None and not isinstance(value, cls):
                raise ConfigError(
                    f"{name}={value!r} must be a {cls.__name__} or a dictionary of its options"
                )
        self.normalize_top_k_affinities = not self.disable_normalize_top_k_affinities
        if self.moe_tp_degree == self.moe_ep_degree == 1:
            self.moe_tp_degree = self.tp_degree
        _validate(self)

    def moe_degrees(self, phase: Phase) -> tuple[int, int]:
        """(tensor-parallel, expert-parallel) degree of the experts in a phase."""
        hybrid = self.hybrid_sharding_config
        if hybrid is None:
            return self.moe_tp_degree, self.moe_ep_degree
        if phase.is_decoding:
            return hybrid.moe_tkg_tp_degree, hybrid.moe_tkg_ep_degree
        return hybrid.moe_cte_tp_degree, hybrid.moe_cte_ep_degree

    @property
    def is_expert_parallel(self) -> bool:
        """Whether, in some phase, ranks have different experts."""
        return any(self.moe_degrees(phase)[1] > 1 for phase in Phase)


_NESTED: dict[str, type[KeywordConfig]] = {
    "blockwise_matmul_config": BlockwiseMatmulConfig,
    "hybrid_sharding_config": HybridShardingConfig,
    "router_config": RouterConfig,
}


def _validate(config: MoENeuronConfig) -> None:
    if config.glu_type not in GLU_TYPES:
        raise ConfigError(f"glu_type={config.glu_type!r} is not one of {', '.join(GLU_TYPES)}")
    if config.capacity_factor is not None and not config.capacity_factor > 0:
        raise ConfigError(
            f"capacity_factor={config.capacity_factor} leaves no expert a token; give a number "
            "above 0, or leave it out to drop none"
        )
    _check_degrees(config, "moe_tp_degree", "moe_ep_degree", config)
    if config.ep_dispatch_cc_option == "A2A":
        _check_exchange(config)
    hybrid = config.hybrid_sharding_config
    if hybrid is not None:
        _check_degrees(hybrid, "moe_cte_tp_degree", "moe_cte_ep_degree", config)
        _check_degrees(hybrid, "moe_tkg_tp_degree", "moe_tkg_ep_degree", config)


def _check_exchange(config: MoENeuronConfig) -> None:
    """Tokens are sent from rank to rank if a rank has tokens of its own, and whole experts."""
    tp_degree, _ = config.moe_degrees(Phase.PREFILL)
    if not config.sequence_parallel_enabled or tp_degree > 1:
        raise ConfigError(
            "ep_dispatch_cc_option='A2A' sends pieces of the sequence to whole experts; set "
            f"sequence_parallel_enabled=True (is {config.sequence_parallel_enabled}) and the "
            f"experts' tensor-parallel degree in prefill to 1 (is {tp_degree})"
        )


def _check_degrees(owner: KeywordConfig, tp: str, ep: str, config: MoENeuronConfig) -> None:
    degrees = getattr(owner, tp), getattr(owner, ep)
    if min(degrees) < 1 or degrees[0] * degrees[1] != config.tp_degree:
        raise ConfigError(
            f"{tp}={degrees[0]} times {ep}={degrees[1]} must be tp_degree={config.tp_degree}: "
            "experts are spread over the same ranks as the rest"
        )

"""Whether a draft model can serve a target: the same tokens, enough rows, a cache that forgives."""

from __future__ import annotations

from typing import Any

from nxdi.errors import ConfigError
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.vocabulary import check_same_tokens
from nxdi.modules.kvcache import RollingCache
from nxdi.types import Phase


def check_compatible(target: NeuronBaseForCausalLM, draft: NeuronBaseForCausalLM) -> None:
    """Raises: ConfigError naming what the draft model lacks."""
    check_same_tokens(target, draft)
    config, own = target.neuron_config, draft.neuron_config
    if own.tkg_batch_size < config.tkg_batch_size:
        raise ConfigError(
            f"the draft model has {own.tkg_batch_size} rows, the target {config.tkg_batch_size}; "
            "compile the draft model with the target's batch_size"
        )
    if own.num_retractable < config.num_retractable and _has_window(draft):
        raise ConfigError(
            "the draft model's attention has a window, whose cache forgets what rejected tokens "
            f"replace; compile it with the target's speculation_length={config.num_verified}"
        )


def _has_window(model: NeuronBaseForCausalLM) -> bool:
    module: Any = model.build(Phase.DECODE)
    return any(isinstance(layout, RollingCache) for layout in module.cache_layouts())

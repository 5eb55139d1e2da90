"""How a draft head fits its target, beside it or within its graphs."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from nxdi.config import InferenceConfig
from nxdi.errors import ConfigError
from nxdi.models.registry import class_for_architecture

if TYPE_CHECKING:
    from nxdi.models.application_base import NeuronApplicationBase


def head_name(is_eagle3: bool) -> str:
    """What the registry calls the class of such heads."""
    return "eagle3" if is_eagle3 else "eagle"


def make_head(
    named: type[NeuronApplicationBase] | None,
    path: str | PathLike[str],
    config: InferenceConfig,
    target: NeuronApplicationBase,
) -> NeuronApplicationBase:
    """The head in `path`, for a target's graphs.

    named: its class; None: that of EAGLE. config: its own, which NxDI's scripts give the class of
    the target's.
    Raises: ConfigError unless it is a head, and reads what the target returns.
    """
    head_cls = named or class_for_architecture(head_name(config.neuron_config.is_eagle3))
    config_cls = head_cls.get_config_cls()
    if not hasattr(config_cls, "feature_size"):
        raise ConfigError(
            f"fused_spec_config has draft_model_cls={head_cls!r}, and its draft_config "
            "is_eagle_draft=True; leave draft_model_cls out for an EAGLE head"
        )
    # What the head's folder lacks is in the target's.
    source = vars(config).get("target_model_path") or str(target.model_path)
    own = config_cls(**{**vars(config), "target_model_path": source})
    head: NeuronApplicationBase = head_cls(path, own)
    check_reads(head, target)
    return head


def check_reads(head: NeuronApplicationBase, target: NeuronApplicationBase) -> None:
    """Raises: ConfigError unless the target returns what the head reads."""
    config, own = target.neuron_config, head.neuron_config
    if not config.enable_eagle_speculation or config.is_eagle3 != own.is_eagle3:
        raise ConfigError(
            f"the head has is_eagle3={own.is_eagle3}, the target enable_eagle_speculation="
            f"{config.enable_eagle_speculation} and is_eagle3={config.is_eagle3}, so it does not "
            "return what the head reads; compile the target with enable_eagle_speculation=True and "
            "the head's is_eagle3"
        )
    num_layers = 3 if own.is_eagle3 else 1
    sizes = head.config.feature_size, num_layers * target.config.hidden_size
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the head reads {sizes[0]} features of a token, the target returns {sizes[1]}; take a "
            "head that was trained for this target"
        )

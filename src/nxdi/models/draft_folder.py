"""What a folder holds that proposes tokens: a draft model, an EAGLE head or Medusa heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nxdi.config import serialize
from nxdi.runtime.checkpoint import read_checkpoint

# The target's own weights.
_NOT_A_DRAFT_S = {"quantized_checkpoints_path"}
# What a head's graphs do without: whoever asks them chooses tokens by himself, one at a time.
_NOT_A_HEAD_S = {"on_device_sampling_config", "async_mode", "enable_eagle_speculation"}


def holds_medusa_heads(folder: Path) -> bool:
    """Whether its config.json is that of Medusa heads, as their authors publish them or vLLM's."""
    data = serialize.read_object(folder / "config.json")
    return data.get("model_type") == "medusa" or "medusa_num_heads" in data


def eagle_options(folder: Path) -> dict[str, bool]:
    """NeuronConfig's keywords for the EAGLE head in a folder; none if it holds no such head.

    The names of its weights say so: published heads call themselves Llama.
    """
    names = {name.removeprefix("model.") for name in read_checkpoint(folder)}
    if "fc.weight" not in names:
        return {}
    is_eagle3 = any(name.endswith("hidden_norm.weight") for name in names)
    has_norm = "layers.0.input_layernorm.weight" in names
    return {
        "is_eagle3": is_eagle3,
        "enable_eagle_draft_input_norm": has_norm and not is_eagle3,
    }


def draft_keywords(target: Mapping[str, Any]) -> dict[str, Any]:
    """NeuronConfig's keywords for a draft model beside a target that is made with `target`.

    For an EAGLE head if the target has enable_eagle_speculation; options of the head alone are
    given with the target's.
    """
    own = {name: value for name, value in target.items() if name not in _NOT_A_DRAFT_S}
    if not target.get("enable_eagle_speculation"):
        return own
    own = {name: value for name, value in own.items() if name not in _NOT_A_HEAD_S}
    return {**own, "is_eagle_draft": True}

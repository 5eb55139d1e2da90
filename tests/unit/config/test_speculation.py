"""The draft model of fused speculation as part of its target's config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nxdi.config import FusedSpecNeuronConfig, InferenceConfig, NeuronConfig
from nxdi.errors import ConfigError
from nxdi.models.config import FusedSpecNeuronConfig as AtNxdisPath
from nxdi.models.llama.modeling_llama import (
    LlamaInferenceConfig,
    NeuronLlamaForCausalLM,
    NeuronLlamaModel,
)

OPTIONS: dict[str, Any] = {
    "enable_fused_speculation": True,
    "speculation_length": 4,
    "on_device_sampling_config": {},
}


class Plain(InferenceConfig):
    """A config that requires nothing."""


def make(draft_model_cls: Any = None) -> Plain:
    draft = Plain(NeuronConfig(torch_dtype=torch.float16, tp_degree=1), hidden_size=32)
    fused = FusedSpecNeuronConfig(NeuronLlamaModel, draft, "draft", draft_model_cls)
    return Plain(NeuronConfig(**OPTIONS), fused_spec_config=fused, hidden_size=64)


def test_it_is_where_nxdi_has_it() -> None:
    assert AtNxdisPath is FusedSpecNeuronConfig


def test_its_folder_is_absolute() -> None:
    fused = make().fused_spec_config
    assert fused is not None
    assert fused.draft_model_path == str(Path("draft").absolute())


def test_it_comes_back_from_json() -> None:
    config = make()
    again = Plain.from_json_string(config.to_json_string())
    assert again == config
    fused = again.fused_spec_config
    assert fused is not None
    assert fused.worker_cls is NeuronLlamaModel
    assert isinstance(fused.draft_config, Plain)
    assert fused.draft_config.neuron_config.torch_dtype is torch.float16
    assert fused.draft_config.hidden_size == 32


def test_its_ranks_follow_from_a_degree_that_was_changed() -> None:
    """As NxDI's scripts do with a copy of the target's options."""
    config = make()
    draft = config.fused_spec_config
    assert draft is not None
    assert draft.draft_config is not None
    draft.draft_config.neuron_config = NeuronConfig(tp_degree=4)
    draft.draft_config.neuron_config.tp_degree = 1
    again = Plain.from_json_string(config.to_json_string()).fused_spec_config
    assert again is not None
    assert again.draft_config is not None
    assert again.draft_config.neuron_config.world_size == 1


def test_a_draft_of_another_class_has_its_config_class() -> None:
    config = make(NeuronLlamaForCausalLM)
    data = json.loads(config.to_json_string())
    data["fused_spec_config"]["draft_config"]["neuron_config"] = {}
    with pytest.raises(ConfigError, match=r"LlamaInferenceConfig needs .*rms_norm_eps"):
        Plain.from_json_string(json.dumps(data))
    assert NeuronLlamaForCausalLM.get_config_cls() is LlamaInferenceConfig


class Hostile:
    """A class that serves no model."""

    _config_cls = Path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"draft_config": None}, "has no draft_config; restore"),
        ({"draft": 1}, "no option 'draft'"),
        (
            {"draft_model_cls": {"__module__": __name__, "__name__": "Hostile"}},
            "serves no model; restore the file",
        ),
    ],
)
def test_damage_is_named(damage: dict[str, Any], message: str) -> None:
    data = json.loads(make().to_json_string())
    data["fused_spec_config"].update(damage)
    with pytest.raises(ConfigError, match=message):
        Plain.from_json_string(json.dumps(data))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"speculation_length": 0}, "speculation_length=0 proposes nothing; set it to 2 or more"),
        ({"speculation_length": 1}, "speculation_length=1 proposes nothing"),
        ({"on_device_sampling_config": None}, "set on_device_sampling_config="),
    ],
)
def test_options_that_a_graph_cannot_decide_with(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NeuronConfig(**{**OPTIONS, **changed})

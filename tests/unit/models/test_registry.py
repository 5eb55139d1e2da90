"""Which class serves which architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from nxdi.errors import ConfigError, UnsupportedError
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.registry import ARCHITECTURES, class_for_architecture, class_for_folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_name_leads_to_a_class(architecture: str) -> None:
    found = class_for_architecture(architecture)
    assert issubclass(found, NeuronBaseForCausalLM)
    assert found.__name__ == f"Neuron{architecture}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_name_is_one_of_transformers(architecture: str) -> None:
    assert architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def test_an_unknown_architecture_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match=r"'BloomForCausalLM' is not known; .*Llama"):
        class_for_architecture("BloomForCausalLM")


def test_a_model_that_takes_images_is_refused_with_the_way_to_its_text_part() -> None:
    message = r"Llama4ForCausalLM\.from_pretrained\(folder\)\.save_pretrained\(text_folder\)"
    with pytest.raises(UnsupportedError, match=message):
        class_for_architecture("Llama4ForConditionalGeneration")


def test_the_class_of_a_folder(saved: Path) -> None:
    assert class_for_folder(saved).__name__ == "NeuronLlamaForCausalLM"


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*config\.json.*check the folder"):
        class_for_folder(tmp_path)


@pytest.mark.parametrize("named", [{}, [], None, 3, "LlamaForCausalLM", [["LlamaForCausalLM"]]])
def test_a_config_that_names_no_architecture(named: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": named}))
    with pytest.raises(ConfigError, match="does not name an architecture"):
        class_for_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"architectures": [' + "[" * 100_000])
def test_a_config_that_is_no_json_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json (is not valid JSON|holds a list)"):
        class_for_folder(tmp_path)


@pytest.mark.parametrize("model_type", ["mistral", None, 3])
def test_a_type_that_contradicts_the_architecture(model_type: object, tmp_path: Path) -> None:
    data = {"architectures": ["LlamaForCausalLM"], "model_type": model_type}
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"contradicts .* goes with .*'llama'"):
        class_for_folder(tmp_path)

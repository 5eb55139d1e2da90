"""InferenceConfig: order of construction, aliases, required attributes, saving."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nxdi.config import InferenceConfig, NeuronConfig, OnDeviceSamplingConfig
from nxdi.errors import ConfigError


class TracingConfig(InferenceConfig):
    """Records the order in which it is built."""

    def load_config(self) -> None:
        self.order = ["method"]

    def add_derived_config(self) -> None:
        self.order.append("derived")
        self.doubled = self.width * 2

    def validate_config(self) -> None:
        self.order.append("validated")
        super().validate_config()


class StrictConfig(InferenceConfig):
    def get_required_attributes(self) -> list[str]:
        return ["hidden_size", "num_hidden_layers", "vision.depth"]


class AliasedConfig(InferenceConfig):
    attribute_map = {"hidden_size": "n_embd"}  # noqa: RUF012 - the form a port uses


class OptionsOfModel(NeuronConfig):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attn_cls = StrictConfig


class ModelConfig(InferenceConfig):
    @classmethod
    def get_neuron_config_cls(cls) -> type[NeuronConfig]:
        return OptionsOfModel


def test_built_in_nxdi_s_order() -> None:
    config = TracingConfig(NeuronConfig(), width=3)
    assert config.order == ["method", "derived", "validated"]
    assert config.doubled == 6


def test_hook_replaces_the_method_and_keywords_override_it() -> None:
    def hook(config: TracingConfig) -> None:
        assert config.neuron_config.batch_size == 2
        config.order = ["hook"]
        config.width = 3

    config = TracingConfig(NeuronConfig(batch_size=2), load_config=hook, width=5)
    assert config.order == ["hook", "derived", "validated"]
    assert (config.width, config.doubled) == (5, 10)


def test_all_missing_attributes_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"StrictConfig needs num_hidden_layers, vision\.depth"):
        StrictConfig(NeuronConfig(), hidden_size=4, vision=SimpleNamespace())
    StrictConfig(
        NeuronConfig(), hidden_size=4, num_hidden_layers=1, vision=SimpleNamespace(depth=1)
    )


def test_aliases_read_and_write_one_attribute() -> None:
    config = AliasedConfig(NeuronConfig(), hidden_size=8)
    assert config.n_embd == config.hidden_size == 8
    config.hidden_size = 16
    assert config.n_embd == 16
    assert "hidden_size" not in vars(config)


def test_an_alias_may_come_with_the_keywords() -> None:
    config = InferenceConfig(NeuronConfig(), a_size=3, attribute_map={"a_size": "z_size"})
    assert config.z_size == 3
    assert InferenceConfig.attribute_map == {}


def test_absent_attributes_are_attribute_errors() -> None:
    config = AliasedConfig(NeuronConfig())
    assert not hasattr(config, "hidden_size")
    assert getattr(config, "absent", 5) == 5
    with pytest.raises(AttributeError, match="AliasedConfig has no attribute 'absent'"):
        _ = config.absent


def test_neuron_config_must_be_one() -> None:
    with pytest.raises(ConfigError, match="must be a NeuronConfig"):
        InferenceConfig({"batch_size": 1})  # type: ignore[arg-type]  # the mistake under test


def test_text_config_is_the_nested_one_or_itself() -> None:
    config = InferenceConfig(NeuronConfig())
    assert config.get_text_config() is config
    nested = SimpleNamespace(hidden_size=2)
    assert InferenceConfig(NeuronConfig(), text_config=nested).get_text_config() is nested


def test_saved_folder_comes_back_equal(tmp_path: Path) -> None:
    sampling = OnDeviceSamplingConfig(do_sample=True, top_k=0)
    config = ModelConfig(
        OptionsOfModel(batch_size=2, torch_dtype="float32", on_device_sampling_config=sampling),
        metadata={"note": "x"},
        hidden_size=8,
        id2label={0: "a"},
        text_config=SimpleNamespace(depth=2),
        _name_or_path="somewhere",
    )
    config.save(tmp_path / "new" / "folder")
    again = ModelConfig.load(tmp_path / "new" / "folder")
    assert again == config
    assert again.neuron_config == config.neuron_config
    assert again.neuron_config.attn_cls is StrictConfig
    assert again.neuron_config.torch_dtype is torch.float32
    assert again.text_config == SimpleNamespace(depth=2)
    assert (again.metadata, again.id2label) == ({"note": "x"}, {0: "a"})
    assert not hasattr(again, "_name_or_path")


def test_loading_may_override(tmp_path: Path) -> None:
    InferenceConfig(NeuronConfig(), hidden_size=8).save(tmp_path)
    options = NeuronConfig(batch_size=4)
    config = InferenceConfig.load(tmp_path, hidden_size=16, neuron_config=options)
    assert config.hidden_size == 16
    assert config.neuron_config is options


def test_json_string_is_sorted_and_versionable() -> None:
    text = InferenceConfig(NeuronConfig(), b=1, a=2).to_json_string()
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert json.loads(text)["neuron_config"]["torch_dtype"] == "bfloat16"


def test_derived_and_open_dtypes_stay_open_through_json() -> None:
    config = InferenceConfig.from_json_string(InferenceConfig(NeuronConfig()).to_json_string())
    assert not config.neuron_config.overrides_torch_dtype


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds a list"),
        ("{}", "no neuron_config"),
        ('{"neuron_config": 5}', "no neuron_config"),
        ('{"neuron_config": {"seq_lenn": 5}}', "did you mean seq_len"),
        ('{"neuron_config": {"seq_len": 0}}', "at least 1"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "neuron_config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        InferenceConfig.load(tmp_path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neuron_config\.json"):
        InferenceConfig.load(tmp_path)


@pytest.mark.parametrize("name", ["load_config", "add_derived_config", "validate_config"])
def test_a_file_cannot_replace_a_method(name: str) -> None:
    hostile = {"__module__": "builtins", "__name__": "list"}
    text = json.dumps({"neuron_config": {}, name: hostile})
    with pytest.raises(ConfigError, match=f"'{name}' is a method"):
        InferenceConfig.from_json_string(text)


def test_unsavable_attributes_are_named(tmp_path: Path) -> None:
    config = InferenceConfig(NeuronConfig(), weights=torch.zeros(1))
    with pytest.raises(ConfigError, match=r"config\.weights="):
        config.save(tmp_path)


def test_equality_and_copies() -> None:
    config = InferenceConfig(NeuronConfig(), hidden_size=4)
    assert copy.deepcopy(config) == config
    assert config != InferenceConfig(NeuronConfig(), hidden_size=5)
    assert config != InferenceConfig(NeuronConfig(batch_size=2), hidden_size=4)
    assert config != "config"
    assert config != ModelConfig(NeuronConfig(), hidden_size=4)

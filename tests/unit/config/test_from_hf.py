"""Hugging Face configs of both dialects in one form."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Gemma3Config, Gemma3TextConfig, GPT2Config, LlamaConfig

from nxdi.config import (
    InferenceConfig,
    NeuronConfig,
    load_pretrained_config,
    to_pretrained_config,
)
from nxdi.errors import ConfigError, UnsupportedError

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


class OldDialect:
    """A config as transformers 4.57 shows it: only `to_dict` and `attribute_map` are read."""

    def __init__(self, attribute_map: dict[str, str] | None = None, **attributes: Any) -> None:
        self.attribute_map = attribute_map or {}
        self.attributes = {"hidden_size": 64, "num_attention_heads": 4, **attributes}
        vars(self).update(self.attributes)

    def to_dict(self) -> dict[str, Any]:
        return dict(self.attributes)


def _load(source: Any, **options: Any) -> InferenceConfig:
    hook = load_pretrained_config(hf_config=source)
    return InferenceConfig(NeuronConfig(**options), load_config=hook)


def _tiny_llama(**overrides: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=64, num_attention_heads=4, intermediate_size=96, vocab_size=128, **overrides
    )


def _write(folder: Path, data: object) -> Path:
    (folder / "config.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize(
    "source",
    [
        _tiny_llama(rope_parameters={**LLAMA3_SCALING, "rope_theta": 5e5}),
        OldDialect(rope_theta=5e5, rope_scaling=LLAMA3_SCALING),
        OldDialect(rope_parameters={**LLAMA3_SCALING, "rope_theta": 5e5}),
    ],
    ids=["5.x", "4.57", "5.x names only"],
)
def test_both_dialects_give_the_same_rope(source: Any) -> None:
    config = _load(source)
    assert config.rope_theta == 5e5
    assert config.rope_scaling == LLAMA3_SCALING
    assert config.rope_parameters == {**LLAMA3_SCALING, "rope_theta": 5e5}


@pytest.mark.parametrize(
    "source", [_tiny_llama(), OldDialect(rope_theta=10000.0, rope_scaling=None)]
)
def test_plain_rope_has_no_scaling(source: Any) -> None:
    config = _load(source)
    assert config.rope_theta == 10000.0
    assert config.rope_scaling is None
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize(
    "source",
    [
        Gemma3TextConfig(hidden_size=64, num_attention_heads=4),
        OldDialect(rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling=None),
    ],
    ids=["5.x", "4.57"],
)
def test_two_kinds_of_layers(source: Any) -> None:
    config = _load(source)
    assert (config.rope_theta, config.rope_local_base_freq) == (1e6, 1e4)
    assert config.rope_scaling is None
    assert config.rope_parameters == {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }


def test_partial_rotation_has_both_names() -> None:
    old = _load(OldDialect(rope_theta=1e4, partial_rotary_factor=0.5))
    assert old.rope_parameters["partial_rotary_factor"] == 0.5
    new = _load(
        OldDialect(
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 1.0,
                "partial_rotary_factor": 0.5,
            }
        )
    )
    assert new.partial_rotary_factor == 0.5
    assert new.rope_scaling is None


def test_older_checkpoints_say_type() -> None:
    config = _load(OldDialect(rope_theta=1e4, rope_scaling={"type": "linear", "factor": 2.0}))
    assert config.rope_scaling["rope_type"] == "linear"


def test_a_model_without_rope_gets_none() -> None:
    config = _load(GPT2Config())
    assert not hasattr(config, "rope_theta")
    assert not hasattr(config, "rope_parameters")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"rope_scaling": [2.0]}, "must be a mapping"),
        ({"rope_scaling": "linear"}, "must be a mapping"),
        ({"rope_scaling": {"factor": 2.0}}, "name no rope_type"),
        ({"rope_scaling": {"rope_type": 3}}, "name no rope_type"),
        ({"rope_parameters": "linear"}, "must be a mapping"),
        ({"rope_parameters": {"rope_theta": 1.0}}, "name no rope_type"),
        ({"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "does not scale"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "name no rope_type"),
    ],
)
def test_malformed_rope_is_refused(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _load(OldDialect(**attributes))


def test_defaults_are_filled_in() -> None:
    config = _load(OldDialect(head_dim=None, num_key_value_heads=None))
    assert (config.head_dim, config.num_key_value_heads) == (16, 4)
    assert config.tie_word_embeddings is False


def test_a_missing_pad_token_stays_missing() -> None:
    assert _load(OldDialect(pad_token_id=None, eos_token_id=2)).pad_token_id is None


def test_given_values_are_kept() -> None:
    config = _load(
        OldDialect(head_dim=32, num_key_value_heads=2, pad_token_id=7, tie_word_embeddings=True)
    )
    assert (config.head_dim, config.num_key_value_heads, config.pad_token_id) == (32, 2, 7)
    assert config.tie_word_embeddings is True


def test_aliases_are_inherited() -> None:
    config = _load(GPT2Config(n_embd=64, n_head=4))
    assert config.hidden_size == config.n_embd == 64
    assert config.num_attention_heads == 4
    assert config.head_dim == 16


@pytest.mark.parametrize(
    "source",
    [_tiny_llama(dtype="float16"), OldDialect(torch_dtype=torch.float16)],
    ids=["5.x", "4.57"],
)
def test_the_checkpoint_s_dtype_is_taken_unless_one_was_chosen(source: Any) -> None:
    config = _load(source)
    assert config.neuron_config.torch_dtype is torch.float16
    assert not hasattr(config, "dtype")
    assert not hasattr(config, "torch_dtype")
    assert _load(source, torch_dtype="float32").neuron_config.torch_dtype is torch.float32


def test_without_any_dtype_the_default_stays() -> None:
    assert _load(_tiny_llama()).neuron_config.torch_dtype is torch.bfloat16


def test_a_checkpoint_of_another_dtype_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"torch\.float64 is not supported"):
        _load(OldDialect(dtype="float64"))


def test_nested_configs_become_namespaces() -> None:
    config = _load(Gemma3Config(text_config={"hidden_size": 64, "num_attention_heads": 4}))
    assert isinstance(config.text_config, SimpleNamespace)
    assert config.get_text_config().rope_theta == 1e6
    assert not hasattr(config.text_config, "dtype")
    assert InferenceConfig.from_json_string(config.to_json_string()) == config


def test_a_config_cannot_replace_our_own_attributes() -> None:
    config = _load(OldDialect(neuron_config={"batch_size": 9}, metadata=1))
    assert config.neuron_config.batch_size == 1
    assert config.metadata is None


def test_a_saved_folder_is_read(tmp_path: Path) -> None:
    _tiny_llama(dtype="float32").save_pretrained(tmp_path)
    config = InferenceConfig.from_pretrained(tmp_path, NeuronConfig(batch_size=2), vocab_size=99)
    assert (config.hidden_size, config.vocab_size) == (64, 99)
    assert config.neuron_config.batch_size == 2
    assert config.neuron_config.torch_dtype is torch.float32
    assert InferenceConfig.from_pretrained(str(tmp_path)).neuron_config.batch_size == 1


def test_exactly_one_source() -> None:
    with pytest.raises(ConfigError, match="exactly one"):
        load_pretrained_config()
    with pytest.raises(ConfigError, match="exactly one"):
        load_pretrained_config("folder", hf_config=_tiny_llama())


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        InferenceConfig.from_pretrained(tmp_path)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model folder at"):
        InferenceConfig.from_pretrained(tmp_path / "absent")


def test_a_corrupt_config_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"')
    with pytest.raises(ConfigError, match=r"config\.json is not valid JSON"):
        InferenceConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "data",
    [{"model_type": "llama", "dtype": ["wide"]}, {"model_type": "llama", "rope_scaling": [1]}],
)
def test_values_that_transformers_refuses(tmp_path: Path, data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no usable config"):
        InferenceConfig.from_pretrained(_write(tmp_path, data))


@pytest.mark.parametrize("model_type", [None, "unheard-of", ["llama"]])
def test_an_unknown_type_is_refused_and_its_code_never_run(
    tmp_path: Path, model_type: object
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    data = {"model_type": model_type, "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    with pytest.raises(ConfigError, match=r"does not know model_type=.* never run"):
        InferenceConfig.from_pretrained(_write(tmp_path, data))


def test_code_in_a_folder_of_a_known_type_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    data = {"model_type": "llama", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    config = InferenceConfig.from_pretrained(_write(tmp_path, data))
    assert config.model_type == "llama"


def test_the_inverse_of_a_scaled_rope() -> None:
    """transformers 5 folds rope_scaling into its own form, and must not do so twice."""
    scaling = {"rope_type": "linear", "factor": 2.0}
    config = _load(LlamaConfig(rope_theta=10.0, rope_scaling=dict(scaling)))
    assert to_pretrained_config(config).rope_parameters == {**scaling, "rope_theta": 10.0}
    assert config.rope_scaling == scaling


def test_the_inverse_is_a_pretrained_config() -> None:
    made = to_pretrained_config(_load(GPT2Config(n_embd=64, n_head=4, eos_token_id=9)))
    assert (made.hidden_size, made.n_embd, made.eos_token_id) == (64, 64, 9)
    assert made.dtype is torch.bfloat16
    assert not hasattr(made, "neuron_config")

"""Limits on what a config.json may say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig

from nxdi.config.limits import (
    MAX_LAYERS,
    check_complete,
    check_generation_values,
    check_names,
    check_rope_numbers,
    check_values,
    shown,
)
from nxdi.errors import ConfigError

LARGEST = {  # what published models have
    "vocab_size": 262_208,
    "hidden_size": 18_432,
    "intermediate_size": [53_248] * 2,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": None,
    "max_position_embeddings": 10_485_760,
    "eos_token_id": [1, 106],
    "pad_token_id": -1,
    "rope_theta": 1e9,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "vision_feature_layer": -2,
    "vision_config": {"num_hidden_layers": 45, "layer_types": None},
}


def test_real_values_are_within_limits() -> None:
    check_values(LARGEST, {}, "config.json")
    data = json.loads(LlamaConfig().to_json_string(use_diff=False))
    check_values(data, {}, "config.json")
    check_names(data, LlamaConfig, "config.json")
    check_complete(data, "config.json")


@pytest.mark.parametrize("name", ["num_hidden_layers", "n_layer", "encoder_layers", "depths"])
def test_whatever_counts_layers_is_limited(name: str) -> None:
    check_values({name: MAX_LAYERS}, {}, "x")
    with pytest.raises(ConfigError, match=rf"x: '{name}'=513 must be an integer from .* to 512"):
        check_values({"decoder": {name: MAX_LAYERS + 1}}, {}, "x")


def test_other_names_for_the_same_are_limited() -> None:
    with pytest.raises(
        ConfigError, match="'n_embd'=1000000000 must be an integer from 1 to 131072"
    ):
        check_values({"n_embd": 10**9}, GPT2Config.attribute_map, "x")


@pytest.mark.parametrize("name", ["from_dict", "to_dict", "__init__", "__dict__", "attribute_map"])
@pytest.mark.parametrize("nest", [lambda d: d, lambda d: {"a": d}, lambda d: {"a": [d]}])
def test_names_that_would_replace_code(name: str, nest: Any) -> None:
    with pytest.raises(ConfigError, match=f"x: '{name}' cannot be a model's attribute; remove it"):
        check_names(nest({name: 1}), LlamaConfig, "x")


def test_infinities_as_transformers_writes_them() -> None:
    check_names({"time_step_limit": [0.0, {"__float__": "Infinity"}]}, LlamaConfig, "x")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"hidden_size": None}, "hidden_size is null"),
        ({"head_dim": 0}, "head_dim=0 .* must be at least 1; correct it"),
        (
            {"head_dim": 4, "partial_rotary_factor": 0.25, "rope_parameters": {}},
            "head_dim=4 .* of which 1 are turned, must give an even number",
        ),
        ({"head_dim": 7, "rope_parameters": {}}, "head_dim=7 .* must give an even number"),
    ],
)
def test_what_a_model_cannot_do_without(data: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_complete(data, "x")
    check_complete({"head_dim": 7, "sliding_window": None}, "x")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("factor", "8"),
        ("factor", 0),
        ("factor", True),
        ("rope_theta", float("nan")),
        ("original_max_position_embeddings", -1),
        ("long_factor", [1.0, float("inf")]),
        ("mscale", -1),
        ("partial_rotary_factor", 10**12),
    ],
)
def test_rope_numbers(name: str, value: object) -> None:
    check_rope_numbers({"rope_type": "yarn", "factor": 8, "mscale": 0, "truncate": False})
    with pytest.raises(ConfigError, match=f"RoPE parameter {name}=.* must be a number from"):
        check_rope_numbers({"rope_type": "yarn", name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 1.5),
        ("top_p", "0.9"),
        ("temperature", float("inf")),
        ("do_sample", "yes"),
        ("num_return_sequences", 10**6),
        ("eos_token_id", [None]),
    ],
)
def test_defaults_for_generation(name: str, value: object) -> None:
    check_generation_values({"top_k": 50, "top_p": 1.0, "do_sample": True, name: None}, "x")
    with pytest.raises(ConfigError, match=f"x: '{name}'="):
        check_generation_values({name: value}, "x")


def test_values_are_shown_shortened() -> None:
    assert shown("short") == "'short'"
    assert len(shown(["x" * 10**6] * 10**5)) < 1000

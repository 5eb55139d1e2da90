"""Every way a config.json can be wrong: a typed error that names the file, within bounds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nxdi import ConfigError, UnsupportedError, WeightError
from tiny_models import save_tiny, tiny_hf_model
from untrusted import (
    Kinds,
    Spoil,
    change,
    check_refused,
    open_model,
    replaced,
    values,
    write,
    write_folder,
)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model")


def config(**changes: Any) -> Spoil:
    return values("config.json", **changes)


def without(*names: str) -> Spoil:
    def edit(text: str) -> str:
        data = json.loads(text)
        return json.dumps({name: data[name] for name in data if name not in names})

    return change("config.json", edit)


def rope(**parameters: Any) -> Spoil:
    return config(rope_parameters={"rope_theta": 1e4, **parameters})


LAYERS = 10**9
CONFIGS: Kinds = {
    "empty": (write("config.json", ""), ConfigError, "config.json is not valid JSON"),
    "not JSON": (write("config.json", "model: llama"), ConfigError, "config.json is not valid"),
    "a list": (write("config.json", []), ConfigError, "config.json holds a list"),
    "a number": (write("config.json", "1"), ConfigError, "config.json holds a int"),
    "deeply nested": (write("config.json", "[" * 10**5), ConfigError, "config.json is not valid"),
    "nested 65 times": (config(x=json.loads("[" * 65 + "]" * 65)), ConfigError, "levels deep"),
    "many values": (write("config.json", "[" + "0," * 10**6 + "0]"), ConfigError, "values"),
    "a large file": (write("config.json", b" " * (10 << 20)), ConfigError, "config.json is larger"),
    "a name twice": (
        change("config.json", lambda text: '{"vocab_size": 3,' + text[1:]),
        ConfigError,
        "config.json .*'vocab_size' twice",
    ),
    "byte order mark": (change("config.json", lambda t: "\ufeff" + t), ConfigError, "BOM"),
    "UTF-16": (change("config.json", lambda t: t.encode("utf-16")), ConfigError, "utf-8"),
    "not UTF-8": (change("config.json", lambda t: t.encode() + b"\xff"), ConfigError, "utf-8"),
    "a directory": (replaced(Path.mkdir), ConfigError, "config.json: it is no regular file"),
    "a pipe": (replaced(os.mkfifo), ConfigError, "config.json: it is no regular file"),
    "a link to a device": (
        replaced(lambda file: file.symlink_to("/dev/zero")),
        ConfigError,
        "config.json: it is no regular file",
    ),
    "a link to itself": (
        replaced(lambda file: file.symlink_to(file.name)),
        ConfigError,
        "cannot read .*config.json",
    ),
    "a link to something else": (
        replaced(lambda file: file.symlink_to("/etc/passwd")),
        ConfigError,
        "config.json is not valid JSON .Expecting value: line 1",
    ),
    "a huge number": (
        change("config.json", lambda text: '{"x": ' + "9" * 5000 + "," + text[1:]),
        ConfigError,
        "config.json is not valid JSON",
    ),
    "a number beyond floats": (config(rms_norm_eps=10**400), ConfigError, "rms_norm_eps"),
    "NaN": (config(rms_norm_eps=float("nan")), ConfigError, "rms_norm_eps'=nan must be a number"),
    "infinity": (rope(rope_type="default", rope_theta=float("inf")), ConfigError, "rope_theta"),
    "no layers": (config(num_hidden_layers=0), ConfigError, "'num_hidden_layers'=0 must be"),
    "a negative size": (config(hidden_size=-16), ConfigError, "'hidden_size'=-16 must be"),
    "an absurd size": (config(hidden_size=10**12), ConfigError, "'hidden_size'=10+ must be"),
    "absurdly many layers": (config(num_hidden_layers=LAYERS), ConfigError, "num_hidden_layers"),
    "absurdly many other layers": (config(n_layers=LAYERS), ConfigError, "n_layers"),
    "absurdly many layers inside": (
        config(text_config={"num_hidden_layers": LAYERS}),
        ConfigError,
        "num_hidden_layers",
    ),
    "absurdly many tokens": (config(vocab_size=10**12), ConfigError, "vocab_size"),
    "absurdly many labels": (config(num_labels=10**9), ConfigError, "num_labels"),
    "more layers than the checkpoint": (
        config(num_hidden_layers=9),
        WeightError,
        "layers.1.*missing|missing.*layers.1",
    ),
    "a fraction": (config(hidden_size=16.5), ConfigError, "'hidden_size'=16.5 must be an integer"),
    "a truth value": (config(hidden_size=True), ConfigError, "'hidden_size'=True must be"),
    "text": (config(vocab_size="40"), ConfigError, "'vocab_size'='40' must be an integer"),
    "a size that is a list": (config(hidden_size=[16]), ConfigError, r"hidden_size'=\[16\] must"),
    "null": (config(hidden_size=None), ConfigError, "hidden_size"),
    "text for a truth value": (config(tie_word_embeddings="false"), ConfigError, "type bool"),
    "an activation that is a list": (config(hidden_act=["silu"]), ConfigError, "hidden_act"),
    "an unknown activation": (config(hidden_act="silly"), ConfigError, "'silly' is not known"),
    "a token that is text": (config(eos_token_id="</s>"), ConfigError, "eos_token_id"),
    "an unknown dtype": (config(dtype="float3"), ConfigError, "float3"),
    "an unsupported dtype": (config(dtype="float64"), UnsupportedError, "float64"),
    "no architecture": (without("architectures"), ConfigError, "config.json does not name"),
    "no type": (without("model_type"), ConfigError, "config.json: model_type=None contradicts"),
    "another type": (config(model_type="mistral"), ConfigError, "'mistral' contradicts"),
    "missing fields": (without("intermediate_size", "vocab_size"), WeightError, "wrong shapes"),
    "heads that do not divide": (config(num_key_value_heads=3), ConfigError, "multiple of"),
    "more heads than features": (
        config(num_attention_heads=32, head_dim=None),
        ConfigError,
        "head",
    ),
    "an odd head": (config(head_dim=5), ConfigError, "head_dim.*=5"),
    "an unknown rope type": (rope(rope_type="spiral"), ConfigError, "spiral"),
    "a rope type that is a list": (rope(rope_type=["linear"]), ConfigError, "rope"),
    "a rope factor of 0": (rope(rope_type="linear", factor=0), ConfigError, "factor=0"),
    "a negative rope factor": (rope(rope_type="linear", factor=-2.0), ConfigError, "factor=-2"),
    "a rope factor in text": (rope(rope_type="linear", factor="2"), ConfigError, "factor='2'"),
    "a rope part beyond all": (
        config(partial_rotary_factor=10**12),
        ConfigError,
        "'partial_rotary_factor'=1000000000000 must be",
    ),
    "a rope part in text": (
        rope(rope_type="default", partial_rotary_factor="half"),
        ConfigError,
        "partial_rotary_factor",
    ),
    "rope that is text": (config(rope_parameters="linear"), ConfigError, "rope"),
    "types of fewer layers": (config(layer_types=[]), ConfigError, "layer_types names 0 layers"),
    "types that are numbers": (config(layer_types=[1]), ConfigError, "must be a list of names"),
    "a method": (config(to_dict=1), ConfigError, "'to_dict' cannot be a model's attribute"),
    "a method of ours": (config(validate_config=1), ConfigError, "'validate_config' cannot be"),
    "a name of Python": (config(__class__="os.system"), ConfigError, "'__class__' cannot be"),
    "aliases in circles": (config(attribute_map={"a": "a"}), ConfigError, "'attribute_map'"),
    "another config file": (config(configuration_files=["../x"]), ConfigError, "'configuration_f"),
    "generation defaults: a list": (
        write("generation_config.json", []),
        ConfigError,
        "generation_config.json holds a list",
    ),
    "generation defaults: text": (
        write("generation_config.json", {"temperature": "hot"}),
        ConfigError,
        "generation_config.json: 'temperature'='hot'",
    ),
    "generation defaults: rows": (
        write("generation_config.json", {"num_return_sequences": 10**9}),
        ConfigError,
        "generation_config.json: 'num_return_sequences'",
    ),
    "generation defaults: refused by transformers": (
        write("generation_config.json", {"early_stopping": [], "cache_implementation": 3}),
        ConfigError,
        "generation_config.json",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_malformed_config(folder: Path, name: str) -> None:
    check_refused(folder, open_model, CONFIGS[name])


# What Llama does not have: a family, and changes of its config.
PARTICULAR: dict[str, tuple[str, Spoil, str]] = {
    "no rope base": ("mistral", rope(rope_type="default", rope_theta=None), "rope_theta, not None"),
    "no rope base of one kind": (
        "gemma3",
        config(
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": None},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        ),
        "rope_theta, not None",
    ),
    "one token of rope": (
        "phi3",
        config(
            original_max_position_embeddings=1,
            rope_scaling={
                "type": "longrope",
                **dict.fromkeys(("short_factor", "long_factor"), [1.0] * 8),
            },
        ),
        "original_max_position_embeddings=1",
    ),
    "rope of fewer layers": (
        "smollm3",
        config(no_rope_layers=[1]),
        "no_rope_layers has 1 entries, num_hidden_layers=2",
    ),
    "rope of layers in text": ("smollm3", config(no_rope_layers="10"), "no_rope_layers"),
    "more heads than features": ("gpt2", config(n_head=112), "head_dim=0"),
    "absurdly wide": ("gpt2", config(n_inner=10**30), "'n_inner'=10+ must be an integer from 1 to"),
    "a norm in text": ("gpt2", config(layer_norm_epsilon="small"), "layer_norm_epsilon"),
    "a scale of 0": (
        "gemma2",
        config(query_pre_attn_scalar=0),
        "'query_pre_attn_scalar'=0 must be a number from 1e-06",
    ),
    "a cap of 0": ("gemma2", config(final_logit_softcapping=0.0), "final_logit_softcapping"),
    "a multiplier beyond all": (
        "granite",
        config(embedding_multiplier=10**30),
        "'embedding_multiplier'=10+ must be a number from .* to 1e.18",
    ),
    "a divisor of 0": ("granite", config(logits_scaling=0), "'logits_scaling'=0 must be"),
}


@pytest.mark.parametrize("name", PARTICULAR)
def test_a_malformed_config_of_another_family(tmp_path: Path, name: str) -> None:
    family, spoil, says = PARTICULAR[name]
    folder = save_tiny(tiny_hf_model(family), tmp_path / family)
    check_refused(folder, open_model, (spoil, ConfigError, says))

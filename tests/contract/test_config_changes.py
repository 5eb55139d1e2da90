"""No artefact is loaded for a model or options other than its own: each change is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nxdi.errors import ArtifactError
from tiny_models import load_app, make_app, save_tiny, tiny_hf_model

BUILT: dict[str, Any] = {
    "seq_len": 32,
    "max_context_length": 16,
    "batch_size": 2,
    "enable_bucketing": True,
    "context_encoding_buckets": [8, 16],
    "token_generation_buckets": [16, 32],
}

# Fields of config.json: some change shapes, some only numbers, some (the last) nothing at all here.
FIELDS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 48,
    "hidden_act": "gelu",
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    "bos_token_id": 3,
    "eos_token_id": 4,
    "pad_token_id": 5,
    "initializer_range": 0.5,
}
OPTIONS: dict[str, Any] = {
    "seq_len": 48,
    "max_context_length": 24,
    "max_length": 40,
    "max_new_tokens": 5,
    "allow_input_truncation": True,
    "padding_side": "left",
    "batch_size": 1,
    "max_batch_size": 3,
    "ctx_batch_size": 1,
    "tkg_batch_size": 1,
    "context_encoding_buckets": [4, 16],
    "token_generation_buckets": [32],
    "token_generation_batches": [1, 2],
    "torch_dtype": torch.bfloat16,
    "output_logits": True,
    "on_device_sampling_config": {"dynamic": True},
    "tp_degree": 2,
    "sequence_parallel_enabled": True,
    "vocab_parallel": True,
    "save_sharded_checkpoint": True,
    "attn_cls": "Other",
    "fused_qkv": True,
    "qkv_kernel_enabled": True,
}
# What is allowed to differ, because the graphs, their inputs and their results are the same.
IRRELEVANT: dict[str, Any] = {"skip_warmup": True, "overrides_torch_dtype": False}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with an artefact compiled from it."""
    folder = save_tiny(tiny_hf_model("llama"), tmp_path_factory.mktemp("built"))
    make_app(folder, **BUILT).compile(folder / "artifact", progress=False)
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of the model folder; its artefact stays where it is."""
    ignored = shutil.ignore_patterns("artifact", ".*")
    return Path(shutil.copytree(built, tmp_path / "model", ignore=ignored))


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_without_a_change_it_loads(built: Path, folder: Path) -> None:
    make_app(folder, **BUILT).load(built / "artifact")


@pytest.mark.parametrize("name", FIELDS)
def test_a_changed_field_of_the_model(name: str, built: Path, folder: Path) -> None:
    change_config(folder, **{name: FIELDS[name]})
    with pytest.raises(ArtifactError, match=rf"  config\.{name}: built for .*, asked for"):
        make_app(folder, **BUILT).load(built / "artifact")


@pytest.mark.parametrize("dialect", ["rope_parameters", "rope_scaling"])
def test_a_changed_rope(dialect: str, built: Path, folder: Path) -> None:
    """In whichever spelling: the base, and the kind of scaling."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters", None)
    rope = {"rope_type": "linear", "factor": 2.0}
    if dialect == "rope_parameters":
        config["rope_parameters"] = {**rope, "rope_theta": 500.0}
    else:
        config |= {"rope_scaling": rope, "rope_theta": 500.0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError) as error:
        make_app(folder, **BUILT).load(built / "artifact")
    assert "config.rope_theta: built for 10000.0, asked for 500.0" in str(error.value)
    assert "config.rope_scaling: built for None, asked for" in str(error.value)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_changed_option(name: str, built: Path, folder: Path) -> None:
    app = make_app(folder, **{**BUILT, name: OPTIONS[name]})
    message = rf"  config\.neuron_config\.{name}: built for .*, asked for"
    with pytest.raises(ArtifactError, match=message):
        app.load(built / "artifact")


def test_another_backend(built: Path, folder: Path) -> None:
    app = make_app(folder, **{**BUILT, "backend": "cpu"})
    with pytest.raises(ArtifactError, match="  backend: built for 'eager', asked for 'cpu'"):
        app.load(built / "artifact")


@pytest.mark.parametrize("name", IRRELEVANT)
def test_what_may_differ(name: str, built: Path, folder: Path) -> None:
    make_app(folder, **{**BUILT, name: IRRELEVANT[name]}).load(built / "artifact")


def test_one_changed_number_among_the_weights(built: Path, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-6
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ArtifactError, match="  weights_fingerprint: built for"):
        make_app(folder, **BUILT).load(built / "artifact")


@pytest.mark.parametrize("what", ["library_version", "torch_version", "platform"])
def test_another_library_or_machine(
    what: str, built: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(folder, **BUILT)
    here = app.identity()
    monkeypatch.setattr(app, "identity", lambda: {**here, what: "another"})
    with pytest.raises(ArtifactError, match=rf"  {what}: built for .*, asked for 'another'"):
        app.load(built / "artifact")


def test_several_changes_are_all_named(built: Path, folder: Path) -> None:
    change_config(folder, vocab_size=48, hidden_act="gelu")
    with pytest.raises(ArtifactError) as error:
        make_app(folder, **{**BUILT, "batch_size": 1}).load(built / "artifact")
    for name in ("vocab_size", "hidden_act", "neuron_config.batch_size"):
        assert f"config.{name}: built for" in str(error.value)


def test_enough_is_changed() -> None:
    assert len(FIELDS) + len(OPTIONS) >= 40


def test_a_change_matters_to_what_is_compared(folder: Path) -> None:
    """The guard is worth having: such a change does alter the answers of the same weights."""
    ids = torch.tensor([[5, 17, 3, 88]])
    before = load_app(folder, **BUILT)(ids).logits
    change_config(folder, hidden_act="gelu")
    assert not torch.equal(load_app(folder, **BUILT)(ids).logits, before)

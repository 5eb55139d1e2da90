"""Where the graphs of an engine come from, which models it serves, and what it refuses."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import nxdi
from nxdi.errors import ArtifactError, ConfigError, UnsupportedError
from nxdi.models.llama.modeling_llama import NeuronLlamaForCausalLM
from tiny_models import tiny_hf_model
from vllm_plugin.test_offline import params, run, tokens_of

PROMPT = [5, 6, 7]
VARIABLE = "NEURON_COMPILED_ARTIFACTS"


@pytest.fixture
def own_model(model_dir: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder, ignore=shutil.ignore_patterns("neuron-compiled-artifacts"))
    return folder


def artifacts(folder: Path) -> list[Path]:
    return [path.parent for path in folder.rglob("manifest.json")]


def answer(llm: Any) -> list[int]:
    return tokens_of(run(llm, [PROMPT], params()))[0]


def test_graphs_are_kept_beside_the_checkpoint(make_llm: Any, own_model: Path) -> None:
    first = answer(make_llm(own_model))
    (kept,) = artifacts(own_model)
    made = kept.stat().st_mtime_ns
    assert answer(make_llm(own_model)) == first
    assert kept.stat().st_mtime_ns == made
    make_llm(own_model, max_num_seqs=2)
    assert len(artifacts(own_model)) == 2


def test_a_read_only_folder_uses_the_cache(
    make_llm: Any, own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    answer(make_llm(own_model))
    assert artifacts(own_model) == []


def test_named_artifacts_are_filled_then_loaded(
    make_llm: Any, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "graphs"
    monkeypatch.setenv(VARIABLE, str(folder))
    first = answer(make_llm())
    made = (folder / "manifest.json").stat().st_mtime_ns
    assert answer(make_llm()) == first
    assert (folder / "manifest.json").stat().st_mtime_ns == made


def test_named_artifacts_for_something_else_are_refused_and_kept(
    make_llm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "graphs"
    monkeypatch.setenv(VARIABLE, str(folder))
    make_llm()
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(ArtifactError, match="seq_len: compiled 128, asked 64"):
        make_llm(max_model_len=64)
    with pytest.raises(ArtifactError, match="enable_bucketing: compiled True, asked False"):
        make_llm(neuron={"enable_bucketing": False})
    assert (folder / "manifest.json").read_bytes() == before


def test_artifacts_of_another_checkpoint_are_refused(
    make_llm: Any, own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "graphs"))
    make_llm()
    other = tiny_hf_model("llama", seed=1, vocab_size=257, rope_theta=500.0)
    other.save_pretrained(own_model)
    with pytest.raises(ArtifactError, match="rope"):
        make_llm(own_model)


COMPILED: dict[str, Any] = {
    "batch_size": 4,
    "seq_len": 128,
    "torch_dtype": "float32",
    "backend": "eager",
    "on_device_sampling_config": {"dynamic": True},
}


def test_what_nxdi_has_compiled_is_served(
    make_llm: Any, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options that vLLM does not decide may be as they were compiled."""
    folder = tmp_path / "graphs"
    nxdi.AutoModelForCausalLM.from_pretrained(
        model_dir,
        artifact_dir=folder,
        output_logits=True,
        enable_bucketing=True,
        context_encoding_buckets=[32, 128],
        **COMPILED,
    )
    monkeypatch.setenv(VARIABLE, str(folder))
    assert len(answer(make_llm())) == 16


def test_graphs_without_logits_are_refused(
    make_llm: Any, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "graphs"
    nxdi.AutoModelForCausalLM.from_pretrained(model_dir, artifact_dir=folder, **COMPILED)
    monkeypatch.setenv(VARIABLE, str(folder))
    with pytest.raises(ArtifactError, match="output_logits"):
        make_llm()


class NeuronStrangerForCausalLM(NeuronLlamaForCausalLM):
    """A model that only this test knows."""


def test_a_registered_model_is_served(make_llm: Any, own_model: Path) -> None:
    from vllm import ModelRegistry

    config = own_model / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "StrangerForCausalLM"))
    nxdi.register("StrangerForCausalLM", NeuronStrangerForCausalLM)
    try:
        # vLLM loads plugins once per process, and earlier tests have made it do so.
        from nxdi.integrations.vllm import register_models

        register_models()
        assert len(answer(make_llm(own_model))) == 16
    finally:
        ModelRegistry.models.pop("StrangerForCausalLM")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"neuron": {"enable_buckets": True}}, ConfigError, "enable_bucketing"),
        ({"neuron": {"batch_size": 9}}, ConfigError, "max_num_seqs"),
        ({"enable_lora": True}, UnsupportedError, "enable_lora"),
        ({"load_format": "dummy"}, UnsupportedError, "load_format"),
        ({"hf_overrides": {"rope_theta": 5.0}}, UnsupportedError, "hf_overrides"),
        ({"kv_cache_dtype": "int8_per_token_head"}, UnsupportedError, "kv_cache_dtype"),
        ({"kv_cache_memory_bytes": 10**9}, UnsupportedError, "kv_cache_memory_bytes"),
        ({"enable_prompt_embeds": True}, UnsupportedError, "enable_prompt_embeds"),
    ],
)
def test_what_is_not_offered_is_refused(
    make_llm: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(Exception, match=message) as raised:
        make_llm(**options)
    assert isinstance(raised.value, error) or error.__name__ in repr(raised.value)


def test_an_override_may_name_the_architecture(make_llm: Any, own_model: Path) -> None:
    first = answer(make_llm(own_model))
    config = own_model / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "UnheardOfForCausalLM"))
    assert answer(make_llm(own_model, hf_overrides={"architectures": ["generic"]})) == first


def test_a_name_on_the_hub_is_fetched(
    make_llm: Any, own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nxdi.integrations.vllm import loading

    asked: list[Any] = []
    monkeypatch.setattr(
        loading, "snapshot_download", lambda name, **_: asked.append(name) or own_model
    )
    assert loading.local_folder("somebody/model", None, None) == own_model
    assert asked == ["somebody/model"]
    assert loading.local_folder(str(own_model), None, None) == own_model
    assert asked == ["somebody/model"]


def test_defaults_are_those_of_compiled_graphs(
    make_llm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_llm(max_num_seqs=None).llm_engine.vllm_config
    assert config.scheduler_config.max_num_seqs == 32
    assert not config.scheduler_config.enable_chunked_prefill
    assert not config.cache_config.enable_prefix_caching
    monkeypatch.setenv("DISABLE_NEURON_CUSTOM_SCHEDULER", "1")
    config = make_llm().llm_engine.vllm_config
    assert config.scheduler_config.enable_chunked_prefill


def test_requests_that_are_not_offered_are_refused(make_llm: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    llm = make_llm()
    with pytest.raises(VLLMValidationError, match="logprob_token_ids"):
        run(llm, [PROMPT], params(logprob_token_ids=[1, 2], logprobs=2))
    assert len(answer(llm)) == 16

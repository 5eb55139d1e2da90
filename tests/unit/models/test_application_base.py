"""A model's life outside the graph: config, weights, compile and load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nxdi.config import NeuronConfig
from nxdi.errors import ArtifactError, ConfigError, WeightError
from nxdi.models.application_base import NeuronApplicationBase
from nxdi.models.llama.modeling_llama import LlamaInferenceConfig, NeuronLlamaForCausalLM
from nxdi.parallel_layers.groups import DistributedWorld, SimulatedWorld, SingleWorld
from nxdi.runtime.backends.eager import EagerBackend
from nxdi.runtime.runner import Runner
from tiny_models import load_app, make_app, save_tiny, tiny_hf_model

IDS = torch.tensor([[5, 17, 3, 88]])


def rewrite(folder: Path, change: Any) -> None:
    """Change the tensors of a checkpoint."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_a_config_made_from_the_folder(saved: Path) -> None:
    neuron_config = NeuronConfig(seq_len=32, backend="eager")
    app = NeuronLlamaForCausalLM(saved, neuron_config=neuron_config)
    assert isinstance(app.config, LlamaInferenceConfig)
    assert app.neuron_config is neuron_config
    assert app.config.hidden_size == 64


def test_a_compiled_model_knows_its_config_and_its_weights(saved: Path, tmp_path: Path) -> None:
    make_app(saved, seq_len=32).compile(tmp_path / "artifact")
    app = NeuronLlamaForCausalLM(tmp_path / "artifact")
    app.load(tmp_path / "artifact")
    assert app.model_path == saved.resolve()
    assert app.neuron_config.seq_len == 32
    assert torch.equal(app(IDS).logits, load_app(saved, seq_len=32)(IDS).logits)


BUDGET: dict[str, Any] = {
    "seq_len": 32,
    "batch_size": 3,
    "is_block_kv_layout": True,
    "pa_block_size": 8,
    "kv_cache_memory_bytes": 100_000,
}


@pytest.mark.parametrize(
    ("options", "block_bytes"),
    [  # 2 layers, keys and values of 2 heads of 16, in blocks of 8 tokens
        ({}, 2 * 2 * 2 * 16 * 8 * 4),
        ({"tp_degree": 2}, 2 * 2 * 1 * 16 * 8 * 4),
        ({"tp_degree": 4}, 2 * 2 * 1 * 16 * 8 * 4),  # each head twice
        ({"kv_cache_quant": True}, 2 * 2 * 2 * 16 * 8),
        ({"pa_block_size": 16}, 2 * 2 * 2 * 16 * 16 * 4),
        ({"torch_dtype": "bfloat16"}, 2 * 2 * 2 * 16 * 8 * 4),  # caches are float32 here
        (
            {"torch_dtype": "bfloat16", "backend": "neuron", "target": "trn2"},
            2 * 2 * 2 * 16 * 8 * 2,
        ),
    ],
    ids=str,
)
def test_as_many_blocks_as_the_memory_holds(
    saved: Path, options: dict[str, Any], block_bytes: int
) -> None:
    app = make_app(saved, **{**BUDGET, **options})
    assert app.neuron_config.pa_num_blocks == 100_000 // block_bytes - 1
    assert app.config.neuron_config is app.neuron_config


def test_the_artefact_says_how_many_blocks_there_are(saved: Path, tmp_path: Path) -> None:
    app = make_app(saved, **BUDGET)
    app.compile(tmp_path / "artifact", progress=False)
    again = NeuronLlamaForCausalLM(tmp_path / "artifact")
    assert again.config == app.config
    assert (again.neuron_config.pa_num_blocks, again.neuron_config.kv_cache_memory_bytes) == (
        23,
        None,
    )
    for same in (again, make_app(saved, **BUDGET)):
        same.load(tmp_path / "artifact")
        caches = same.runner.executables[0].caches
        assert sum(cache.nbytes for cache in caches) <= 100_000
    with pytest.raises(ArtifactError, match="pa_num_blocks"):
        make_app(saved, **{**BUDGET, "kv_cache_memory_bytes": 50_000}).load(tmp_path / "artifact")


def test_memory_for_less_than_one_sequence(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"=32 takes 4: give 20480 or more"):
        make_app(saved, **{**BUDGET, "kv_cache_memory_bytes": 20_479})
    app = make_app(saved, **{**BUDGET, "kv_cache_memory_bytes": 20_480})
    assert app.neuron_config.pa_num_blocks == 4


def test_a_folder_without_a_compiled_config(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"neuron_config\.json"):
        NeuronLlamaForCausalLM(saved)


def test_loading_what_was_never_compiled(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no compiled artefact"):
        make_app(saved).load(tmp_path / "nothing")


def test_wrong_weights_are_found_before_compiling(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EagerBackend, "compile", lambda *args: pytest.fail("compiled"))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.stray.weight"] = tensors.pop("model.norm.weight")
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()

    rewrite(folder, change)
    with pytest.raises(WeightError) as error:
        make_app(folder).compile(tmp_path / "artifact")
    for part in (
        "missing from the checkpoint: norm.weight",
        "not used by the model: layers.0.mlp.stray.weight",
        "lm_head.weight has shape (96, 64), the model needs (97, 64)",
    ):
        assert part in str(error.value)
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.rotary_emb.inv_freq", "rank_util.rank"])
def test_tensors_that_are_computed_are_ignored(name: str, folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(1)}))
    assert name.removeprefix("model.") not in make_app(folder).get_state_dict()
    load_app(folder, seq_len=16)


def test_tied_embeddings(tmp_path: Path) -> None:
    folder = save_tiny(tiny_hf_model("llama", tie_word_embeddings=True), tmp_path)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    state = make_app(folder).get_state_dict()
    assert state["lm_head.weight"] is state["embed_tokens.weight"]


def test_a_hook_may_rename_weights(folder: Path) -> None:
    class Renaming(NeuronLlamaForCausalLM):
        @staticmethod
        def convert_hf_to_neuron_state_dict(state_dict: Any, config: Any) -> Any:
            return {name.replace("final.", "norm."): x for name, x in state_dict.items()}

    rewrite(
        folder, lambda tensors: tensors.update({"final.weight": tensors.pop("model.norm.weight")})
    )
    app = Renaming(folder, make_app(folder).config)
    assert len(app.rank_weights((0,))) == 1


def test_each_rank_gets_its_share(saved: Path) -> None:
    whole, halves = make_app(saved), make_app(saved, tp_degree=2)
    full = whole.rank_weights((0,))[0]["layers.0.mlp.gate_proj.weight"]
    parts = [rank["layers.0.mlp.gate_proj.weight"] for rank in halves.rank_weights((0, 1))]
    assert torch.equal(torch.cat(parts), full)


@pytest.mark.parametrize("skip", [False, True])
def test_warm_up_can_be_skipped(
    skip: bool, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed: list[Runner] = []
    monkeypatch.setattr(Runner, "warm_up", lambda runner: warmed.append(runner))
    app = make_app(saved, skip_warmup=skip)
    app.compile(tmp_path / "artifact")
    app.load(tmp_path / "artifact")
    assert len(warmed) == (0 if skip else 1)
    app.load(tmp_path / "artifact", skip_warmup=not skip)
    assert len(warmed) == 1


def test_compile_if_needed(saved: Path, tmp_path: Path) -> None:
    app = make_app(saved)
    app.compile_if(lambda: False, tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()
    answers = [True, False]  # another process compiled while this one waited for the lock
    app.compile_if(lambda: answers.pop(0), tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()
    app.compile_if(lambda: True, tmp_path / "artifact")
    assert (tmp_path / "artifact" / "manifest.json").is_file()


def test_ranks_live_in_this_process_unless_torchrun_says_otherwise(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(make_app(saved).backend.world(), SingleWorld)
    assert isinstance(make_app(saved, tp_degree=2).backend.world(), SimulatedWorld)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert isinstance(make_app(saved, tp_degree=2).backend.world(), SimulatedWorld)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(DistributedWorld, "__init__", lambda self: None)
    assert isinstance(make_app(saved, tp_degree=2).backend.world(), DistributedWorld)


def test_as_many_processes_as_ranks(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    message = "torchrun started 3 processes for tp_degree=2; use --nproc-per-node 2"
    with pytest.raises(ConfigError, match=message):
        make_app(saved, tp_degree=2).compile(tmp_path / "artifact")


def test_the_base_has_the_config_class_of_a_model() -> None:
    assert NeuronApplicationBase.get_config_cls().__name__ == "InferenceConfig"
    assert NeuronLlamaForCausalLM.get_config_cls() is LlamaInferenceConfig

"""A draft model in the graphs of its target: which options, weights and memory they have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nxdi.config import NeuronConfig
from nxdi.errors import ConfigError, WeightError
from nxdi.models.auto import AutoModelForCausalLM
from nxdi.models.fused import SHARED, draft_options
from nxdi.models.llama.modeling_llama import NeuronLlamaForCausalLM
from nxdi.runtime.artifact import Artifact
from nxdi.types import Phase
from tiny_models import load_fused, make_app, make_fused, planned_bytes, save_tiny, tiny_hf_model

SHORT: dict[str, Any] = {"seq_len": 32, "max_context_length": 8, "batch_size": 2}
FUSED: dict[str, Any] = {
    "enable_fused_speculation": True,
    "speculation_length": 4,
    "on_device_sampling_config": {},
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tiny_hf_model("llama"), tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smaller in every way."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = tiny_hf_model("llama", seed=1, **sizes)
    return save_tiny(model, tmp_path_factory.mktemp("draft"))


@pytest.mark.parametrize("tp_degree", [1, 2])
def test_memory_is_that_of_the_two_models(tp_degree: int, target: Path, draft: Path) -> None:
    options = {**SHORT, "tp_degree": tp_degree}
    fused = make_fused(target, draft, **options)
    plain, alone = make_app(target, **options), make_app(draft, **options)
    extra = planned_bytes(fused) - planned_bytes(plain)
    assert 0 < extra <= 1.05 * planned_bytes(alone)


def test_weights_have_nxdis_prefixes(target: Path, draft: Path) -> None:
    (found,) = make_fused(target, draft, **SHORT).rank_weights((0,))
    for prefix, folder in (("draft_model.", draft), ("target_model.", target)):
        (alone,) = make_app(folder, **SHORT).rank_weights((0,))
        own = {name: x for name, x in found.items() if name.startswith(prefix)}
        assert own.keys() == {prefix + name for name in alone}
        assert all(torch.equal(own[prefix + name], x) for name, x in alone.items())


def test_a_draft_of_one_rank_is_whole_on_each(target: Path, draft: Path) -> None:
    options = {**SHORT, "tp_degree": 2, "vocab_parallel": True}
    own = {"tp_degree": 1, "vocab_parallel": True}
    ranks = make_fused(target, draft, **options, draft_options=own).rank_weights((0, 1))
    (alone,) = make_app(draft, **SHORT, vocab_parallel=True).rank_weights((0,))
    for rank in ranks:
        assert all(torch.equal(rank[f"draft_model.{name}"], x) for name, x in alone.items())
    name = "target_model.layers.0.mlp.gate_proj.weight"
    assert not torch.equal(ranks[0][name], ranks[1][name])


def test_the_draft_has_dtypes_of_its_own(target: Path, draft: Path) -> None:
    own = {"torch_dtype": torch.float16, "kv_cache_quant": True}
    app = make_fused(target, draft, **SHORT, draft_options=own)
    module: Any = app.build(Phase.DECODE)
    dtypes = [torch.float8_e4m3fn] * 2 + [torch.float32] * 4
    assert module.cache_dtypes() == dtypes
    assert [cache.dtype for cache in app.program().make_caches(module)] == dtypes
    (weights,) = app.rank_weights((0,))
    projection = "layers.0.mlp.gate_proj.weight"
    assert weights[f"draft_model.{projection}"].dtype == torch.float16
    assert weights[f"target_model.{projection}"].dtype == torch.float32


def test_one_budget_pays_for_the_blocks_of_both(target: Path, draft: Path) -> None:
    paged = {"is_block_kv_layout": True, "pa_block_size": 8, "kv_cache_memory_bytes": 400_000}
    app = make_fused(target, draft, **SHORT, **paged)
    module: Any = app.build(Phase.DECODE)
    num_blocks = app.neuron_config.pa_num_blocks
    assert {shape[0] for shape in module.cache_shapes()} == {num_blocks + 1}
    caches = app.program().make_caches(module)
    used = sum(cache.nbytes for cache in caches)
    assert used <= 400_000 < used + used // (num_blocks + 1)


def test_missing_weights_of_the_draft_are_named(target: Path, draft: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(draft, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    app = make_fused(target, broken, **SHORT)
    message = r"of the draft model, .*\n.*missing .*layers\.0\.mlp\.up_proj\.weight"
    with pytest.raises(WeightError, match=message):
        app.compile(tmp_path / "artifact", progress=False)
    (broken / "model.safetensors").unlink()
    with pytest.raises(WeightError, match=r"of the draft model, no checkpoint in .*broken"):
        app.rank_weights((0,))


def test_another_vocabulary_is_refused(target: Path, tmp_path: Path) -> None:
    other = save_tiny(tiny_hf_model("llama", vocab_size=51), tmp_path / "other")
    with pytest.raises(ConfigError, match="the draft model has vocab_size=51, the target 97"):
        make_fused(target, other, **SHORT)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"tp_degree": 2}, r"tp_degree=2, the target 4; .* same ranks \(4\), or each .* \(1\)"),
        ({"tp_degree": 8}, "tp_degree=8, the target 4"),
        ({"seq_len": 64}, "has seq_len=64, the target 32; .*leave it out"),
        ({"speculation_length": 5}, "has speculation_length=5, the target 4"),
        ({"batch_size": 1, "is_block_kv_layout": True}, "has is_block_kv_layout=True, the target"),
    ],
)
def test_what_both_share_is_the_targets(own: dict[str, Any], message: str) -> None:
    config = NeuronConfig(**FUSED, **SHORT, tp_degree=4)
    with pytest.raises(ConfigError, match=message):
        draft_options(NeuronConfig(**{"tp_degree": 4, **own}), config)


def test_a_copy_of_the_targets_options_will_do() -> None:
    """As NxDI's scripts make it."""
    config = NeuronConfig(**FUSED, **SHORT, tp_degree=4)
    own = NeuronConfig(**{**SHORT, "tp_degree": 4, "torch_dtype": torch.float16})
    found = draft_options(own, config)
    assert {name: getattr(found, name) for name in SHARED} == {
        name: getattr(config, name) for name in SHARED
    }
    assert found.torch_dtype == torch.float16
    assert not found.enable_fused_speculation
    assert own.speculation_length == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fused_spec_config": None}, "needs a draft model: give the InferenceConfig"),
        ({"fused_spec_config": "folder"}, "'folder' must be a FusedSpecNeuronConfig"),
        ({"enable": False}, "set enable_fused_speculation=True as well"),
        ({"draft_config": None}, "give the InferenceConfig of the draft model, and its folder"),
        ({"draft_model_path": None}, "draft_model_path=None"),
        ({"worker_cls": int}, "worker_cls=<class 'int'> .*NeuronLlamaModel"),
        ({"draft_model_cls": int}, "draft_model_cls=<class 'int'>"),
    ],
)
def test_a_config_that_contradicts_itself(
    changed: dict[str, Any], message: str, target: Path, draft: Path
) -> None:
    config = make_fused(target, draft, **SHORT).config
    for name, value in changed.items():
        if name == "fused_spec_config":
            config.fused_spec_config = value
        elif name == "enable":
            config.neuron_config.enable_fused_speculation = value
        else:
            setattr(config.fused_spec_config, name, value)
    with pytest.raises(ConfigError, match=message):
        NeuronLlamaForCausalLM(target, config)


def test_an_artefact_knows_its_draft(target: Path, draft: Path, tmp_path: Path) -> None:
    app = make_fused(target, draft, **SHORT)
    app.compile(tmp_path / "artifact", progress=False)
    again = NeuronLlamaForCausalLM(tmp_path / "artifact")
    again.load(tmp_path / "artifact")
    manifest = json.loads((tmp_path / "artifact" / "manifest.json").read_text())
    names = [graph["name"] for graph in manifest["graphs"]]
    assert names[-1] == "fused_speculation_model_b2_s4_c32"
    # In another place it is the same draft; with other options or weights another one.
    moved = Path(shutil.copytree(draft, tmp_path / "moved"))
    Artifact(tmp_path / "artifact").check(make_fused(target, moved, **SHORT))
    other = make_fused(target, moved, **SHORT, draft_options={"torch_dtype": torch.float16})
    with pytest.raises(Exception, match=r"draft_config\.neuron_config\.torch_dtype: built for"):
        Artifact(tmp_path / "artifact").check(other)
    with pytest.raises(Exception, match="weights_fingerprint: built for"):
        Artifact(tmp_path / "artifact").check(make_fused(target, target, **SHORT))


def test_auto_takes_the_folder_of_a_draft(target: Path, draft: Path, tmp_path: Path) -> None:
    options = {**SHORT, **FUSED, "backend": "eager", "tp_degree": 2}
    model = AutoModelForCausalLM.from_pretrained(target, draft_model_path=draft, **options)
    ids = torch.tensor([[5, 6, 7]])
    plain = AutoModelForCausalLM.from_pretrained(target, **{**SHORT, "backend": "eager"})
    logits = plain(ids).logits
    assert logits is not None
    found = model(ids).tokens
    assert found is not None
    assert int(found) == int(logits.argmax())
    model.compile(tmp_path / "artifact", progress=False)
    AutoModelForCausalLM.from_pretrained(tmp_path / "artifact")
    with pytest.raises(ConfigError, match=r"takes no options, but got .'draft_model_path'"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "artifact", draft_model_path=draft)


def test_weights_may_be_in_the_artefact(target: Path, draft: Path) -> None:
    options = {"tp_degree": 2, "draft_options": {"tp_degree": 1}}
    app = load_fused(target, draft, **SHORT, **options, save_sharded_checkpoint=True)
    assert app(torch.tensor([[5, 6, 7]])).tokens is not None

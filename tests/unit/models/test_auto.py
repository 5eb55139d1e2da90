"""From a model folder to a model that runs, in one call; compiled once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nxdi.errors import ArtifactError, ConfigError, UnsupportedError
from nxdi.models.auto import AutoModelForCausalLM, default_artifact_dir
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.runtime.backends.eager import EagerBackend
from tiny_models import make_app, save_tiny, tiny_hf_model

OPTIONS: dict[str, Any] = {"backend": "eager", "torch_dtype": "float32", "seq_len": 32}
IDS = torch.tensor([[5, 17, 3, 88]])


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that something was compiled into, in order."""
    folders: list[Path] = []
    right = EagerBackend.compile

    def compile_and_note(self: EagerBackend, program: Any, folder: Path, report: Any) -> Any:
        folders.append(folder)
        return right(self, program, folder, report)

    monkeypatch.setattr(EagerBackend, "compile", compile_and_note)
    return folders


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NXDI_CACHE_DIR", str(tmp_path / "cache"))


def load(folder: Path, **options: Any) -> NeuronBaseForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, progress=False, **{**OPTIONS, **options})


def logits(model: NeuronBaseForCausalLM) -> Any:
    out = model(IDS).logits
    assert out is not None
    return out.tolist()


def test_it_is_not_constructed() -> None:
    with pytest.raises(ConfigError, match="from_pretrained"):
        AutoModelForCausalLM()


def test_class_for(folder: Path) -> None:
    assert AutoModelForCausalLM.class_for(str(folder)).__name__ == "NeuronLlamaForCausalLM"


def test_the_second_call_compiles_nothing(folder: Path, compiled: list[Path]) -> None:
    first = logits(load(folder))
    assert logits(load(folder)) == first
    assert len(compiled) == 1


def test_a_copy_of_the_folder_compiles_nothing(
    folder: Path, tmp_path: Path, compiled: list[Path]
) -> None:
    """Content decides, and the name; not where the folder is or when it was written."""
    load(folder)
    load(Path(shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)))
    assert len(compiled) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"seq_len": 16},
        {"batch_size": 2},
        {"tp_degree": 2},
        {"torch_dtype": "bfloat16"},
        {"enable_bucketing": True},
        {"output_logits": True},
        {"save_sharded_checkpoint": True},
        {"on_device_sampling_config": {"dynamic": True}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_option_leads_elsewhere(
    changed: dict[str, Any], folder: Path, compiled: list[Path]
) -> None:
    load(folder)
    load(folder, **changed)
    load(folder, **changed)
    assert len(compiled) == 2


def test_other_weights_lead_elsewhere(folder: Path, compiled: list[Path]) -> None:
    first = logits(load(folder))
    save_tiny(tiny_hf_model("llama", seed=2), folder)
    assert logits(load(folder)) != first
    assert len(compiled) == 2


def test_another_config_leads_elsewhere(folder: Path, compiled: list[Path]) -> None:
    first = logits(load(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    assert logits(load(folder)) != first
    assert len(compiled) == 2


def test_edited_code_leads_elsewhere(
    folder: Path, compiled: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder)
    monkeypatch.setattr("nxdi.models.application_base.code_version", lambda *classes: "edited")
    load(folder)
    assert len(compiled) == 2


def test_a_damaged_artefact_in_the_cache_is_made_anew(folder: Path, compiled: list[Path]) -> None:
    first = logits(load(folder))
    (default_artifact_dir(make_app(folder, **OPTIONS)) / "manifest.json").write_text("{")
    assert logits(load(folder)) == first
    assert len(compiled) == 2


def test_a_folder_of_ones_own(folder: Path, tmp_path: Path, compiled: list[Path]) -> None:
    mine = tmp_path / "mine"
    first = logits(load(folder, artifact_dir=mine))
    assert (mine / "manifest.json").is_file()
    assert logits(load(folder, artifact_dir=str(mine))) == first
    assert len(compiled) == 1


def test_a_folder_of_ones_own_made_for_other_options(folder: Path, tmp_path: Path) -> None:
    """It is not overwritten: the difference is shown instead."""
    mine = tmp_path / "mine"
    load(folder, artifact_dir=mine)
    message = r"neuron_config\.batch_size: built for 1, asked for 3"
    with pytest.raises(ArtifactError, match=message):
        load(folder, artifact_dir=mine, batch_size=3)
    load(folder, artifact_dir=mine)


def test_a_folder_of_ones_own_that_is_damaged(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    load(folder, artifact_dir=mine)
    (mine / "neuron_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"neuron_config\.json: damaged"):
        load(folder, artifact_dir=mine)


def test_from_an_artefact(folder: Path, tmp_path: Path, compiled: list[Path]) -> None:
    mine = tmp_path / "mine"
    first = logits(load(folder, artifact_dir=mine))
    model = AutoModelForCausalLM.from_pretrained(mine)
    assert logits(model) == first
    assert model.neuron_config.seq_len == OPTIONS["seq_len"]
    assert len(compiled) == 1


def test_an_artefact_takes_no_options(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    load(folder, artifact_dir=mine)
    with pytest.raises(ConfigError, match=r"takes no options, but got \['seq_len'\]"):
        AutoModelForCausalLM.from_pretrained(mine, seq_len=64)


def test_an_artefact_with_weights_needs_no_model_folder(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    first = logits(load(folder, artifact_dir=mine, save_sharded_checkpoint=True, tp_degree=2))
    shutil.rmtree(folder)
    moved = mine.rename(tmp_path / "moved")
    assert logits(AutoModelForCausalLM.from_pretrained(moved)) == first


def test_an_artefact_without_weights_needs_them(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    load(folder, artifact_dir=mine)
    (folder / "model.safetensors").unlink()
    with pytest.raises(Exception, match=r"no checkpoint in .*model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(mine)


def test_unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["BloomForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="BloomForCausalLM"):
        load(folder)


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*config\.json"):
        load(tmp_path)


def test_unknown_option(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no option 'seq_length' \(did you mean seq_len"):
        load(folder, seq_length=64)


def test_weights_that_changed_since_they_were_stored(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    options = {"artifact_dir": mine, "save_sharded_checkpoint": True}
    load(folder, **options)
    save_tiny(tiny_hf_model("llama", seed=2), folder)
    with pytest.raises(ArtifactError, match="weights_fingerprint: built for"):
        load(folder, **options)


def test_the_ranks_of_a_draft_model_that_is_not_there(tmp_path: Path) -> None:
    folder = save_tiny(tiny_hf_model("llama"), tmp_path / "model")
    with pytest.raises(ConfigError, match="give draft_model_path as well"):
        AutoModelForCausalLM.from_pretrained(folder, draft_model_tp_degree=1, **OPTIONS)

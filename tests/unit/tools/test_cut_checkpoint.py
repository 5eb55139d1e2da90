from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from nxdi.errors import ConfigError, WeightError
from nxdi.runtime.checkpoint import read_safetensors, write_safetensors
from nxdi.utils.testing import create_n_layer_checkpoint
from tiny_models import load_app, save_tiny, tiny_hf_model


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A Qwen2 of 4 layers, the last 2 of them with windows."""
    options = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    model = tiny_hf_model("qwen2", num_hidden_layers=4, **options)
    return save_tiny(model.to(torch.bfloat16), tmp_path / "deep")


@pytest.mark.parametrize("num_layers", [1, 3, 4])
def test_the_first_layers_are_kept_as_they_are(num_layers: int, deep: Path, tmp_path: Path) -> None:
    folder = create_n_layer_checkpoint(deep, tmp_path / "cut", num_layers)
    assert config_of(folder)["num_hidden_layers"] == num_layers
    assert config_of(folder)["layer_types"] == config_of(deep)["layer_types"][:num_layers]
    whole = read_safetensors(deep / "model.safetensors")
    cut = read_safetensors(folder / "model.safetensors")
    dropped = {name for name in whole if any(f".{n}." in name for n in range(num_layers, 4))}
    assert cut.keys() == whole.keys() - dropped
    for name, tensor in cut.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, whole[name])


def test_a_cut_model_is_what_transformers_makes_of_it(deep: Path, tmp_path: Path) -> None:
    folder = create_n_layer_checkpoint(str(deep), str(tmp_path / "cut"), 3)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = load_app(folder, seq_len=16)
    ids = torch.arange(5)[None]
    with torch.no_grad():
        expected = reference(ids).logits[0, -1]
    torch.testing.assert_close(model(ids).logits[0, -1], expected, rtol=1e-4, atol=1e-4)


def test_what_belongs_to_the_tokenizer_comes_along(deep: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "merges.txt", "chat_template.jinja", "tokenizer.model"):
        (deep / name).write_text(name)
    for name in ("modeling_own.py", "pytorch_model.bin", "model.safetensors.index.json"):
        (deep / name).write_text("{}")
    folder = create_n_layer_checkpoint(deep, tmp_path / "cut", 1)
    assert (folder / "tokenizer.model").read_text() == "tokenizer.model"
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "merges.txt", "chat_template.jinja", "tokenizer.model"),
    }


def test_lists_that_are_not_per_layer_are_left_alone(deep: Path, tmp_path: Path) -> None:
    config = {**config_of(deep), "eos_token_id": [1, 2, 3, 4], "no_rope_layers": [1, 1, 1, 0]}
    (deep / "config.json").write_text(json.dumps(config))
    cut = config_of(create_n_layer_checkpoint(deep, tmp_path / "cut", 2))
    assert cut["eos_token_id"] == [1, 2, 3, 4]
    assert cut["no_rope_layers"] == [1, 1]


def test_the_text_part_of_a_config_is_cut(deep: Path, tmp_path: Path) -> None:
    nested = {"model_type": "some_vlm", "text_config": config_of(deep), "vision_config": {}}
    (deep / "config.json").write_text(json.dumps(nested))
    cut = config_of(create_n_layer_checkpoint(deep, tmp_path / "cut", 2))
    assert cut["text_config"]["num_hidden_layers"] == 2
    assert len(cut["text_config"]["layer_types"]) == 2


@pytest.mark.parametrize("num_layers", [0, -1, 5])
def test_a_number_of_layers_it_does_not_have(num_layers: int, deep: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"num_layers={num_layers} is not between 1 and"):
        create_n_layer_checkpoint(deep, tmp_path / "cut", num_layers)
    assert not (tmp_path / "cut").exists()


def test_a_folder_with_something_in_it(deep: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not empty"):
        create_n_layer_checkpoint(deep, deep, 1)
    (tmp_path / "empty").mkdir()
    assert create_n_layer_checkpoint(deep, tmp_path / "empty", 1).is_dir()


def test_a_checkpoint_that_names_no_layers(deep: Path, tmp_path: Path) -> None:
    write_safetensors(deep / "model.safetensors", {"first.weight": torch.zeros(2)})
    with pytest.raises(WeightError, match=r"first\.weight"):
        create_n_layer_checkpoint(deep, tmp_path / "cut", 1)


def test_a_config_without_layers(deep: Path, tmp_path: Path) -> None:
    (deep / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(ConfigError, match="num_hidden_layers=None"):
        create_n_layer_checkpoint(deep, tmp_path / "cut", 1)

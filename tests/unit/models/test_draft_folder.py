"""Folders of those who propose say what they are by their config.json and the names of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nxdi.errors import ConfigError
from nxdi.models.draft_folder import eagle_options, holds_medusa_heads
from nxdi.runtime.checkpoint import write_safetensors
from tiny_eagle import PlainHead
from tiny_models import save_tiny, tiny_hf_model


@pytest.mark.parametrize("is_eagle3", [False, True])
def test_eagle_heads(is_eagle3: bool, tmp_path: Path) -> None:
    PlainHead(tiny_hf_model("llama"), is_eagle3).save(tmp_path, has_ends=True)
    expected = {"is_eagle3": is_eagle3, "enable_eagle_draft_input_norm": False}
    assert eagle_options(tmp_path) == expected
    assert not holds_medusa_heads(tmp_path)


def test_an_eagle_head_with_a_norm(tmp_path: Path) -> None:
    names = ("model.fc.weight", "model.layers.0.input_layernorm.weight")
    write_safetensors(tmp_path / "model.safetensors", dict.fromkeys(names, torch.ones(2)))
    assert eagle_options(tmp_path)["enable_eagle_draft_input_norm"]


def test_a_draft_model(tmp_path: Path) -> None:
    folder = save_tiny(tiny_hf_model("llama"), tmp_path / "draft")
    assert eagle_options(folder) == {}
    assert not holds_medusa_heads(folder)


@pytest.mark.parametrize("text", ['{"model_type": "medusa"}', '{"medusa_num_heads": 5}'])
def test_medusa_heads(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert holds_medusa_heads(tmp_path)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        holds_medusa_heads(tmp_path)

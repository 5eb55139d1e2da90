from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nxdi.errors import ConfigError
from nxdi.models.vocabulary import check_same_tokens
from tiny_models import make_app, save_tiny, tiny_hf_model


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    sizes = {"target": 97, "draft": 51}
    models = {name: tiny_hf_model("llama", vocab_size=size) for name, size in sizes.items()}
    apps = {name: make_app(save_tiny(model, tmp_path / name)) for name, model in models.items()}
    with pytest.raises(ConfigError, match="the draft model has vocab_size=51, the target 97"):
        check_same_tokens(apps["target"], apps["draft"])


@pytest.mark.parametrize(
    ("vocab", "added"),
    [
        ({"a": 1, "b": 0}, []),
        ({"a": 0, "b": 1, "c": 2}, []),
        ({"a": 0, "b": 1}, [{"content": "<x>", "id": 2}]),
        ([["b", 0.0], ["a", 0.0]], []),
    ],
)
def test_another_tokenizer_is_refused(tmp_path: Path, vocab: Any, added: Any) -> None:
    folder = save_tiny(tiny_hf_model("llama"), tmp_path / "target")
    other = Path(shutil.copytree(folder, tmp_path / "draft"))
    same = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": []}
    for file in (folder, other):
        (file / "tokenizer.json").write_text(json.dumps(same))
    target, draft = make_app(folder), make_app(other)
    check_same_tokens(target, draft)
    different = {"model": {"vocab": vocab}, "added_tokens": added}
    (other / "tokenizer.json").write_text(json.dumps(different) + "\n")
    with pytest.raises(ConfigError, match=r"tokenizer\.json differs from the target's"):
        check_same_tokens(target, draft)

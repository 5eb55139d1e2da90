"""The worked example of docs/add-a-model.md runs as it stands, and equals transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from nxdi.models import registry
from tiny_models import save_tiny, tiny_hf_model

PAGE = Path(__file__).parents[2] / "docs" / "add-a-model.md"


def test_add_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NXDI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_REGISTERED", {})
    reference: Any = tiny_hf_model("qwen3")
    model_dir = save_tiny(reference, tmp_path / "model")
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(
        json.dumps({**config, "architectures": ["MyForCausalLM"]})
    )
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {
        "model_dir": model_dir,
        "input_ids": torch.tensor([[5, 9, 3, 71, 20]]),
    }
    for block in blocks:
        exec(block, names)
    expected = reference.generate(names["input_ids"], max_new_tokens=20, do_sample=False)
    assert names["tokens"].tolist() == expected.tolist()

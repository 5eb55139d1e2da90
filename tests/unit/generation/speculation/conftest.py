"""What tests of speculation share: a tiny target, and draft models near and far from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter
from tiny_models import load_app, near, save_tiny, tiny_hf_model

LENGTHS: dict[str, Any] = {"seq_len": 48, "max_context_length": 16, "batch_size": 3}


@dataclass(frozen=True)
class Folders:
    """target; near: its draft is often right; far: hardly ever."""

    target: Path
    near: Path
    far: Path

    def app(self, name: str = "target", **options: Any) -> NeuronBaseForCausalLM:
        """One of them, loaded: the target verifies 4 tokens, drafts none."""
        if name == "target":
            options = {"speculation_length": 4, **options}
        return load_app(getattr(self, name), **{**LENGTHS, **options})

    def adapter(self, **options: Any) -> HuggingFaceGenerationAdapter:
        return HuggingFaceGenerationAdapter(self.app(**options))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    model = tiny_hf_model("llama", seed=3)
    models = {"target": model, "near": near(model), "far": tiny_hf_model("llama", seed=4)}
    return Folders(
        **{name: save_tiny(of, tmp_path_factory.mktemp(name)) for name, of in models.items()}
    )


@pytest.fixture(scope="session")
def target(folders: Folders) -> NeuronBaseForCausalLM:
    """Loaded with logits as its output, for 3 rows of 48 tokens."""
    return folders.app()


@pytest.fixture(scope="session")
def drafts(folders: Folders) -> dict[str, NeuronBaseForCausalLM]:
    """Loaded drafts; that called "target" is the target's twin."""
    return {name: folders.app(name, speculation_length=0) for name in ("target", "near", "far")}

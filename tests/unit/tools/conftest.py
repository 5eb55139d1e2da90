"""What tests of tools share: a tiny model folder, and that model loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nxdi.models.causal_lm import NeuronBaseForCausalLM
from tiny_models import load_app, save_tiny, tiny_hf_model


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama; to be left as it is."""
    return save_tiny(tiny_hf_model("llama", seed=1), tmp_path_factory.mktemp("tools") / "llama")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the model folder that a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "llama"))


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory, saved: Path) -> NeuronBaseForCausalLM:
    """The tiny Llama, loaded eagerly for two rows of 32 tokens."""
    folder = shutil.copytree(saved, tmp_path_factory.mktemp("tools") / "loaded")
    return load_app(Path(folder), seq_len=32, max_context_length=16, batch_size=2)

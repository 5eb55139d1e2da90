"""What tests of models share: a tiny model folder, made once, and copies of it to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tiny_models import save_tiny, tiny_hf_model


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama; to be left as it is."""
    return save_tiny(tiny_hf_model("llama", seed=1), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the model folder that a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "llama"))

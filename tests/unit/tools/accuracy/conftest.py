"""A tiny model, loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nxdi.models.causal_lm import NeuronBaseForCausalLM
from tiny_models import load_app, save_tiny, tiny_hf_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers."""
    return save_tiny(tiny_hf_model("llama"), tmp_path_factory.mktemp("accuracy"))


@pytest.fixture(scope="session", params=[1, 2], ids=["tp1", "tp2"])
def app(folder: Path, request: pytest.FixtureRequest) -> Iterator[NeuronBaseForCausalLM]:
    """It, on the eager backend with one rank and with two."""
    tp_degree: int = request.param
    model = load_app(folder, seq_len=32, max_context_length=16, batch_size=2, tp_degree=tp_degree)
    yield model
    assert model.runner.observers == []

"""What tests of the planner share: a tiny model for a device that is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nxdi.models.causal_lm import NeuronBaseForCausalLM
from tiny_models import make_app, save_tiny, tiny_hf_model

MakeApp = Callable[..., NeuronBaseForCausalLM]
_OPTIONS: dict[str, Any] = {
    "backend": "neuron",
    "target": "trn2",
    "torch_dtype": "bfloat16",
    "seq_len": 64,
    "max_context_length": 32,
    "batch_size": 2,
}


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> MakeApp:
    """make(family, **options): options of NeuronConfig, or of the model with a leading `hf_`."""
    folders: dict[str, Path] = {}

    def make(family: str = "llama", **options: Any) -> NeuronBaseForCausalLM:
        shape = {name: options.pop(name) for name in [*options] if name.startswith("hf_")}
        overrides = {name.removeprefix("hf_"): value for name, value in shape.items()}
        key = f"{family} {overrides}"
        if key not in folders:
            folder = tmp_path_factory.mktemp("estimate") / "tiny"
            folders[key] = save_tiny(tiny_hf_model(family, **overrides), folder)
        return make_app(folders[key], **{**_OPTIONS, **options})

    return make

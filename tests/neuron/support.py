"""Tiny models for a device: what most tests of the Neuron backend compile, load and ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter
from tiny_models import VOCAB_SIZE, make_app

TINY: dict[str, Any] = {"seq_len": 32, "max_context_length": 16, "batch_size": 2}
# Two rows of 12 tokens.
PROMPTS = torch.arange(24).view(2, 12) * 31 % (VOCAB_SIZE - 1) + 1


def neuron_app(folder: Path, **options: Any) -> NeuronBaseForCausalLM:
    """The model of a folder for trn2, neither compiled nor loaded."""
    return make_app(folder, **{"backend": "neuron", "target": "trn2", **TINY, **options})


def loaded(folder: Path, artifact: Path, **options: Any) -> NeuronBaseForCausalLM:
    """`neuron_app`, compiled to `artifact` and loaded."""
    app = neuron_app(folder, **options)
    app.compile(artifact, progress=False)
    app.load(artifact)
    return app


def eager(folder: Path, **options: Any) -> NeuronBaseForCausalLM:
    """The same on the eager backend, which writes its empty artefact beside the model."""
    return loaded(folder, folder / "eager", **{**options, "backend": "eager"})


def generate(app: NeuronBaseForCausalLM, prompts: Tensor = PROMPTS, tokens: int = 12) -> Tensor:
    """Prompts and their greedy continuations."""
    adapter: Any = HuggingFaceGenerationAdapter(app)
    found: Tensor = adapter.generate(prompts, max_new_tokens=tokens, do_sample=False)
    return found

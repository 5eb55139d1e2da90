"""Tiny random Hugging Face models, and the nxdi models that serve them.

Every test may write `from tiny_models import ...`: pyproject.toml puts `tests/` on pytest's path,
and ruff sorts these helpers as first-party because `src` there names the same folder.

Weights are drawn wide (1.6 / sqrt(fan_in)), norms and biases away from neutral, embeddings untied.
With the usual initialisation a tiny model repeats one token whatever its positions say, and so
hides errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from nxdi.config import load_pretrained_config
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.registry import class_for_folder

VOCAB_SIZE = 97

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    # Generation ends by length only, so that runs have a known number of tokens.
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_FAMILIES: dict[str, tuple[type[Any], type[PreTrainedModel], dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 24}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
}
FAMILIES = tuple(_FAMILIES)


def tiny_hf_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A float32 Hugging Face model of 2 layers in eval mode; `overrides` go to its config."""
    config_cls, model_cls, particular = _FAMILIES[family]
    model = model_cls(config_cls(**{**_SHAPE, **particular, **overrides})).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_draw(name, parameter, generator))
    return model


def _draw(name: str, parameter: nn.Parameter, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if name.endswith("bias"):
        return 0.3 * noise
    if parameter.dim() == 1:
        return 1 + 0.1 * noise
    return noise * (1.6 / parameter.shape[-1] ** 0.5)


def save_tiny(model: PreTrainedModel, folder: Path) -> Path:
    """Write a model as a Hugging Face folder (config.json, model.safetensors)."""
    model.save_pretrained(folder)
    return folder


def make_app(folder: Path, **options: Any) -> NeuronBaseForCausalLM:
    """The nxdi model of a Hugging Face folder, neither compiled nor loaded.

    `options` are NeuronConfig keywords; the backend is eager unless they say otherwise.
    """
    model_cls = class_for_folder(folder)
    config_cls = model_cls.get_config_cls()
    options = {"backend": "eager", "torch_dtype": torch.float32, **options}
    neuron_config = config_cls.get_neuron_config_cls()(**options)
    return model_cls(folder, config_cls(neuron_config, load_config=load_pretrained_config(folder)))


def load_app(folder: Path, **options: Any) -> NeuronBaseForCausalLM:
    """`make_app`, compiled to `folder/artifact` and loaded."""
    app = make_app(folder, **options)
    app.compile(folder / "artifact", progress=False)
    app.load(folder / "artifact")
    return app

"""Which class serves a Hugging Face architecture."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from nxdi.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from nxdi.models.causal_lm import NeuronBaseForCausalLM

# architecture in config.json -> class; imported when asked for
ARCHITECTURES = {
    "LlamaForCausalLM": "nxdi.models.llama.modeling_llama:NeuronLlamaForCausalLM",
    "MistralForCausalLM": "nxdi.models.mistral.modeling_mistral:NeuronMistralForCausalLM",
    "Qwen2ForCausalLM": "nxdi.models.qwen2.modeling_qwen2:NeuronQwen2ForCausalLM",
}


def class_for_architecture(architecture: str) -> type[NeuronBaseForCausalLM]:
    """Raises: UnsupportedError naming the known architectures."""
    if architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"architecture {architecture!r} is not known; known are "
            f"{', '.join(sorted(ARCHITECTURES))}. "
            "To run a model of your own, subclass NeuronBaseForCausalLM (docs/add-a-model.md)"
        )
    module, name = ARCHITECTURES[architecture].split(":")
    found: type[NeuronBaseForCausalLM] = getattr(importlib.import_module(module), name)
    return found


def class_for_folder(
    model_dir: Path, config_file: str = "config.json"
) -> type[NeuronBaseForCausalLM]:
    """The class for the first architecture named in a folder's config.

    Raises: ConfigError if the file is missing, is not JSON or names none; UnsupportedError if it is
    not known.
    """
    file = model_dir / config_file
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        architecture = data["architectures"][0]
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read ({error.strerror}); give a Hugging Face model folder"
        ) from error
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise ConfigError(
            f'{file} does not name an architecture such as ["LlamaForCausalLM"]: {error!r}'
        ) from error
    return class_for_architecture(str(architecture))

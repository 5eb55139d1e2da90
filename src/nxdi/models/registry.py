"""Which class serves a Hugging Face architecture."""

from __future__ import annotations

import importlib
import json
from importlib.metadata import entry_points
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


ENTRY_POINTS = "nxdi.models"  # group in a package's metadata: architecture -> "module:Class"
_REGISTERED: dict[str, type[NeuronBaseForCausalLM]] = {}


def register(
    architecture: str, model_cls: type[NeuronBaseForCausalLM], exist_ok: bool = False
) -> None:
    """Let `model_cls` serve folders whose config.json names `architecture`, in this process.

    A package does the same for every process with an entry point of the group "nxdi.models".
    Raises: ConfigError if another class serves it already, unless `exist_ok`.
    """
    known = {**ARCHITECTURES, **_REGISTERED}
    if not exist_ok and known.get(architecture, model_cls) is not model_cls:
        raise ConfigError(
            f"architecture {architecture!r} is served by {known[architecture]} already; pass "
            "exist_ok=True to replace it"
        )
    _REGISTERED[architecture] = model_cls


def class_for_architecture(architecture: str) -> type[NeuronBaseForCausalLM]:
    """The class registered for it, the library's own, or one of an installed package.

    Raises: UnsupportedError naming the known architectures.
    """
    if architecture in _REGISTERED:
        return _REGISTERED[architecture]
    if architecture in ARCHITECTURES:
        module, name = ARCHITECTURES[architecture].split(":")
        found: type[NeuronBaseForCausalLM] = getattr(importlib.import_module(module), name)
        return found
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if architecture in installed:
        loaded: type[NeuronBaseForCausalLM] = installed[architecture].load()
        return loaded
    known = sorted({*ARCHITECTURES, *_REGISTERED, *installed})
    raise UnsupportedError(
        f"architecture {architecture!r} is not known; known are {', '.join(known)}. To run a model "
        "of your own, subclass NeuronBaseForCausalLM and nxdi.register it (docs/add-a-model.md)"
    )


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

"""Which class serves a Hugging Face architecture."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from nxdi.config import serialize
from nxdi.config.limits import shown
from nxdi.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from nxdi.models.causal_lm import NeuronBaseForCausalLM

# architecture in config.json -> class; imported when asked for
ARCHITECTURES = {
    "LlamaForCausalLM": "nxdi.models.llama.modeling_llama:NeuronLlamaForCausalLM",
    "Llama4ForCausalLM": "nxdi.models.llama4.modeling_llama4:NeuronLlama4ForCausalLM",
    "MistralForCausalLM": "nxdi.models.mistral.modeling_mistral:NeuronMistralForCausalLM",
    "Qwen2ForCausalLM": "nxdi.models.qwen2.modeling_qwen2:NeuronQwen2ForCausalLM",
    "Gemma2ForCausalLM": "nxdi.models.gemma2.modeling_gemma2:NeuronGemma2ForCausalLM",
    "Gemma3ForCausalLM": "nxdi.models.gemma3.modeling_gemma3:NeuronGemma3ForCausalLM",
    "GraniteForCausalLM": "nxdi.models.granite.modeling_granite:NeuronGraniteForCausalLM",
    "Olmo2ForCausalLM": "nxdi.models.olmo2.modeling_olmo2:NeuronOlmo2ForCausalLM",
    "Phi3ForCausalLM": "nxdi.models.phi3.modeling_phi3:NeuronPhi3ForCausalLM",
    "Qwen3ForCausalLM": "nxdi.models.qwen3.modeling_qwen3:NeuronQwen3ForCausalLM",
    "Cohere2ForCausalLM": "nxdi.models.cohere2.modeling_cohere2:NeuronCohere2ForCausalLM",
    "GPT2LMHeadModel": "nxdi.models.gpt2.modeling_gpt2:NeuronGPT2LMHeadModel",
    "GPTNeoXForCausalLM": "nxdi.models.gpt_neox.modeling_gpt_neox:NeuronGPTNeoXForCausalLM",
    "Glm4ForCausalLM": "nxdi.models.glm4.modeling_glm4:NeuronGlm4ForCausalLM",
    "MixtralForCausalLM": "nxdi.models.mixtral.modeling_mixtral:NeuronMixtralForCausalLM",
    "Qwen3MoeForCausalLM": "nxdi.models.qwen3_moe.modeling_qwen3_moe:NeuronQwen3MoeForCausalLM",
    "OlmoeForCausalLM": "nxdi.models.olmoe.modeling_olmoe:NeuronOlmoeForCausalLM",
    "DbrxForCausalLM": "nxdi.models.dbrx.modeling_dbrx:NeuronDbrxForCausalLM",
    "DeepseekV3ForCausalLM": "nxdi.models.deepseek.modeling_deepseek:NeuronDeepseekV3ForCausalLM",
    "GptOssForCausalLM": "nxdi.models.gpt_oss.modeling_gpt_oss:NeuronGptOssForCausalLM",
    "SmolLM3ForCausalLM": "nxdi.models.smollm3.modeling_smollm3:NeuronSmolLM3ForCausalLM",
}
# Takes images as well -> the class of transformers that loads its text part.
_TEXT_PARTS = {"Llama4ForConditionalGeneration": "Llama4ForCausalLM"}
# Serves any folder with Llama's layout, but only by this name.
GENERIC = "generic"
# Names that no folder's config.json has: they are asked for.
_NAMED = {
    GENERIC: "nxdi.models.generic.modeling_generic:NeuronGenericForCausalLM",
    "eagle": "nxdi.models.eagle.modeling_eagle:NeuronEagleForCausalLM",
    "eagle3": "nxdi.models.eagle3.modeling_eagle3:NeuronEagle3ForCausalLM",
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
    if place := ARCHITECTURES.get(architecture) or _NAMED.get(architecture):
        module, name = place.split(":")
        found: type[NeuronBaseForCausalLM] = getattr(importlib.import_module(module), name)
        return found
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if architecture in installed:
        loaded: type[NeuronBaseForCausalLM] = installed[architecture].load()
        return loaded
    if architecture in _TEXT_PARTS:
        raise UnsupportedError(
            f"{architecture} takes images, which are not part of this release; save its text part "
            f"with transformers, {_TEXT_PARTS[architecture]}.from_pretrained(folder)"
            ".save_pretrained(text_folder), and serve that folder"
        )
    known = ", ".join(name for name in known_architectures() if name != GENERIC)
    raise UnsupportedError(
        f"architecture {shown(architecture)} is not known; known are {known}. To run a "
        "model of your own, subclass NeuronBaseForCausalLM and nxdi.register it "
        "(docs/add-a-model.md)"
    )


def known_architectures() -> list[str]:
    """Every name that `class_for_architecture` takes."""
    installed = [point.name for point in entry_points(group=ENTRY_POINTS)]
    return sorted({*ARCHITECTURES, *_REGISTERED, *installed, GENERIC})


def class_for_folder(
    model_dir: Path, config_file: str = "config.json", architecture: str | None = None
) -> type[NeuronBaseForCausalLM]:
    """The class for the first architecture named in a folder's config, or for `architecture`.

    Raises: ConfigError if the file is missing, is not JSON, names none, or contradicts itself;
        UnsupportedError if it is not known.
    """
    file = model_dir / config_file
    data = serialize.read_object(file)
    named = data.get("architectures") if architecture is None else [architecture]
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise ConfigError(
            f'{file} does not name an architecture such as ["LlamaForCausalLM"], but '
            f"{shown(named)}; correct it"
        )
    found = class_for_architecture(named[0])
    if named[0] in ARCHITECTURES and named[0] not in _REGISTERED:
        _check_model_type(named[0], data.get("model_type"), file)
    return found


def _check_model_type(architecture: str, model_type: object, file: Path) -> None:
    """The type decides how the config is read, and so must be one that has this architecture."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    fitting = sorted(name for name, serving in NAMES.items() if serving == architecture)
    if fitting and model_type not in fitting:
        raise ConfigError(
            f"{file}: model_type={shown(model_type)} contradicts the architecture "
            f"{architecture!r}, which goes with {' or '.join(map(repr, fitting))}; correct it"
        )

"""The model that a configuration of vLLM asks for, compiled or found compiled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download

from nxdi import env
from nxdi.errors import ArtifactError
from nxdi.generation.speculation.proposals import Proposer
from nxdi.integrations.vllm.layout import is_paged, num_cache_blocks
from nxdi.integrations.vllm.options import asked_options, neuron_options
from nxdi.integrations.vllm.speculation import make_proposer
from nxdi.models.auto import AutoModelForCausalLM, default_artifact_dir
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.folder_options import with_folder_options
from nxdi.runtime.store import MANIFEST

if TYPE_CHECKING:
    from vllm.config import SpeculativeConfig, VllmConfig

_BESIDE = "neuron-compiled-artifacts"  # a folder in the model's


def load_model(config: VllmConfig) -> NeuronBaseForCausalLM:
    """The loaded model; its graphs come from the first of these that applies.

    `NEURON_COMPILED_ARTIFACTS`: loaded if it was made for what is asked, filled if it is empty.
    A folder beside the checkpoint, or in the cache if that cannot be written, named after
    everything that decides the graphs.
    Raises: ArtifactError that shows the difference, for graphs made for something else.
    """
    folder = local_folder(
        config.model_config.model, config.model_config.revision, config.load_config.download_dir
    )
    asked = asked_options(config, is_paged(config), num_cache_blocks(config))
    speculative = config.speculative_config
    if speculative is not None and speculative.method == "medusa":
        asked["medusa_heads_path"] = str(_draft_folder(speculative, config))
    model_cls = AutoModelForCausalLM.class_for(folder, config.model_config.architecture)
    asked = with_folder_options(model_cls, folder, asked)
    path = env.neuron_artifacts()
    if path is not None and (path / MANIFEST).is_file():
        return _load_made_for(path, model_cls, folder, asked)
    neuron = model_cls.get_config_cls().get_neuron_config_cls()(**neuron_options(asked))
    model = model_cls(folder, neuron_config=neuron)
    if path is None:
        path = _own_folder(model)
    model.compile_if(lambda: not (path / MANIFEST).is_file(), path)
    model.load(path)
    return model


def load_proposer(config: VllmConfig, target: NeuronBaseForCausalLM) -> Proposer | None:
    """Who proposes tokens to the loaded target, as `speculative_config` says; None: nobody."""
    asked = config.speculative_config
    if asked is None:
        return None
    folder = None if asked.method == "ngram" else _draft_folder(asked, config)
    return make_proposer(asked, target, folder)


def _draft_folder(asked: SpeculativeConfig, config: VllmConfig) -> Path:
    """The folder of the draft model or heads that are asked for."""
    draft = asked.draft_model_config
    return local_folder(draft.model, draft.revision, config.load_config.download_dir)


def local_folder(model: str, revision: str | None, download_dir: str | None) -> Path:
    """The model's folder; a name on the Hugging Face hub is downloaded."""
    if Path(model).is_dir():
        return Path(model)
    return Path(snapshot_download(model, revision=revision, cache_dir=download_dir))


def _load_made_for(
    path: Path, model_cls: type[NeuronBaseForCausalLM], folder: Path, asked: dict[str, Any]
) -> NeuronBaseForCausalLM:
    """Graphs that somebody has compiled: what is not asked may be as they have it."""
    neuron = model_cls.get_config_cls().load(path).neuron_config
    wanted = type(neuron)(**neuron_options(asked))
    differences = [
        f"{name}: compiled {getattr(neuron, name)!r}, asked {getattr(wanted, name)!r}"
        for name in asked
        if getattr(neuron, name) != getattr(wanted, name)
    ]
    if not neuron.output_logits and neuron.on_device_sampling_config is not None:
        differences.append("output_logits: compiled False, but vLLM needs True")
    if differences:
        raise ArtifactError(
            f"NEURON_COMPILED_ARTIFACTS={path} was compiled for something else: "
            f"{'; '.join(differences)}. Change the options, or name another folder"
        )
    model = model_cls(folder, neuron_config=neuron)
    model.load(path)
    return model


def _own_folder(model: NeuronBaseForCausalLM) -> Path:
    in_cache = default_artifact_dir(model)
    if not os.access(model.model_path, os.W_OK):
        return in_cache
    return model.model_path / _BESIDE / in_cache.name

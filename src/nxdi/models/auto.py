"""One call from a model folder to a model that runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from nxdi import env
from nxdi.config import FusedSpecNeuronConfig
from nxdi.config.serialize import CONFIG_FILE
from nxdi.errors import ConfigError
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.folder_options import with_folder_options
from nxdi.models.fused import SHARED
from nxdi.models.head_fit import head_name
from nxdi.models.registry import class_for_folder
from nxdi.runtime.artifact import Artifact
from nxdi.runtime.store import MANIFEST, weights_fingerprint

_ALSO_THE_DRAFTS = ("torch_dtype", "tp_degree", "is_eagle3", "enable_eagle_draft_input_norm")


class AutoModelForCausalLM:
    """Picks the class for a folder's `config.json`, compiles or finds its graphs, loads them."""

    def __init__(self) -> None:
        raise ConfigError("use AutoModelForCausalLM.from_pretrained(model_dir, seq_len=..., ...)")

    @staticmethod
    def class_for(
        model_dir: str | PathLike[str], architecture: str | None = None
    ) -> type[NeuronBaseForCausalLM]:
        """The class for `architecture`, or the one in `config.json`. Raises: UnsupportedError."""
        return class_for_folder(Path(model_dir), architecture=architecture)

    @classmethod
    def from_pretrained(
        cls,
        model_dir: str | PathLike[str],
        *,
        architecture: str | None = None,
        artifact_dir: str | PathLike[str] | None = None,
        progress: bool | None = None,
        target_model_path: str | PathLike[str] | None = None,
        draft_model_path: str | PathLike[str] | None = None,
        draft_model_tp_degree: int | None = None,
        **options: Any,
    ) -> NeuronBaseForCausalLM:
        """A loaded model.

        model_dir: a Hugging Face folder, or an artefact written by `compile` (which takes no
        options).
        architecture: what serves the folder, in place of the name in its `config.json`: "generic"
        for a model with Llama's layout under a name that is not known.
        artifact_dir: where the compiled graphs are, or are put if there are none; default: what
        NEURON_COMPILED_ARTIFACTS names, if they are for Neuron, else a folder in the cache named
        after everything that decides them, so that any change leads to another folder.
        target_model_path: of an EAGLE head, which `is_eagle_draft` makes of a folder: the folder of
        its target, for the embeddings and the lm_head that its own may lack.
        draft_model_path: the folder of the draft model of enable_fused_speculation, with
        enable_eagle_speculation of an EAGLE head. It has the weights' dtype and tp_degree that
        `options` name for the target, and is quantized if its folder is; for others give the
        model's config a FusedSpecNeuronConfig.
        draft_model_tp_degree: 1, for every rank to run all of the draft model.
        options: keywords of NeuronConfig.
        Raises: ArtifactError if `artifact_dir` holds graphs made for something else.
        """
        folder = Path(model_dir)
        if (folder / MANIFEST).is_file():
            given = {
                "architecture": architecture,
                "target_model_path": target_model_path,
                "draft_model_path": draft_model_path,
                "draft_model_tp_degree": draft_model_tp_degree,
            }
            asked = {name: value for name, value in given.items() if value is not None}
            return _from_artifact(folder, {**asked, **options})
        model = make_model(
            folder,
            options,
            architecture=architecture,
            target_model_path=target_model_path,
            draft_model_path=draft_model_path,
            draft_model_tp_degree=draft_model_tp_degree,
        )
        if artifact_dir is None and model.backend.name == "neuron":
            artifact_dir = env.neuron_artifacts()
        path = Path(artifact_dir) if artifact_dir is not None else default_artifact_dir(model)
        is_in_cache = artifact_dir is None
        model.compile_if(lambda: _must_compile(path, is_in_cache), path, progress)
        model.load(path)
        return model


def make_model(
    folder: Path,
    options: Mapping[str, Any],
    *,
    architecture: str | None = None,
    target_model_path: str | PathLike[str] | None = None,
    draft_model_path: str | PathLike[str] | None = None,
    draft_model_tp_degree: int | None = None,
) -> NeuronBaseForCausalLM:
    """The model of a Hugging Face folder, neither compiled nor loaded.

    options: keywords of NeuronConfig; the others are those of
    `AutoModelForCausalLM.from_pretrained`.
    """
    if options.get("is_eagle_draft"):
        architecture = head_name(bool(options.get("is_eagle3")))
    model_cls = AutoModelForCausalLM.class_for(folder, architecture)
    options = with_folder_options(model_cls, folder, options)
    config_cls = model_cls.get_config_cls()
    target = {} if target_model_path is None else {"target_model_path": str(target_model_path)}
    neuron_config = config_cls.get_neuron_config_cls()(**options)
    config = config_cls.from_pretrained(folder, neuron_config, **target)
    if draft_model_path is not None:
        if draft_model_tp_degree is not None:
            options = {**options, "tp_degree": draft_model_tp_degree}
        config.fused_spec_config = _fused(model_cls, Path(draft_model_path), options)
    elif draft_model_tp_degree is not None:
        raise ConfigError(
            f"draft_model_tp_degree={draft_model_tp_degree} is that of a draft model in the "
            "graphs; give draft_model_path as well"
        )
    return model_cls(folder, config)


def _fused(
    target_cls: type[NeuronBaseForCausalLM], folder: Path, options: Mapping[str, Any]
) -> FusedSpecNeuronConfig:
    """The draft model in `folder` for a target with `options`."""
    own = {name: options[name] for name in (*SHARED, *_ALSO_THE_DRAFTS) if name in options}
    is_head = bool(options.get("enable_eagle_speculation"))
    head = head_name(bool(options.get("is_eagle3"))) if is_head else None
    draft_cls = AutoModelForCausalLM.class_for(folder, head)
    own["is_eagle_draft"] = is_head
    own = with_folder_options(draft_cls, folder, own)
    config_cls = draft_cls.get_config_cls()
    config = config_cls.from_pretrained(folder, config_cls.get_neuron_config_cls()(**own))
    return FusedSpecNeuronConfig(target_cls._model_cls, config, folder, draft_cls)


def _must_compile(path: Path, is_in_cache: bool) -> bool:
    """A user's folder is filled if it is empty; one in the cache is also replaced if damaged."""
    return not Artifact(path).is_whole() if is_in_cache else not (path / MANIFEST).is_file()


def default_artifact_dir(model: NeuronBaseForCausalLM) -> Path:
    """The folder in the cache for exactly this model, configuration, code, machine and weights."""
    facts = {**model.identity(), "weights": weights_fingerprint(model.checkpoint_files())}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return env.cache_dir() / "artifacts" / f"{model.model_path.resolve().name}-{digest[:16]}"


def _from_artifact(folder: Path, options: dict[str, Any]) -> NeuronBaseForCausalLM:
    if options:
        raise ConfigError(
            f"{folder} is compiled already and takes no options, but got {sorted(options)}; "
            "give the Hugging Face folder to compile it anew"
        )
    model = class_for_folder(folder, CONFIG_FILE)(folder)
    model.load(folder)
    return model

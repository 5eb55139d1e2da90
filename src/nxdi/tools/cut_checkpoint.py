"""A model folder with fewer layers, for trying things out: small, quick, and as real as the whole.

The first layers of a model, with its embeddings and head, are no useful model; they are a test of
names, shapes, dtypes and arithmetic that takes seconds instead of hours.
"""

from __future__ import annotations

import json
import re
from os import PathLike
from pathlib import Path
from typing import Any

from nxdi.config import serialize
from nxdi.errors import ConfigError, WeightError
from nxdi.runtime.checkpoint import read_checkpoint, write_safetensors
from nxdi.runtime.files import atomic_directory
from nxdi.tools.model_folder import check_empty, copy_companions

_NUM_LAYERS = "num_hidden_layers"
_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)\.")
# Lists that have nothing to do with layers, whatever their length.
_NOT_PER_LAYER = re.compile(r"architectures|.*_token_ids?")


def create_n_layer_checkpoint(
    model_dir: str | PathLike[str], out_dir: str | PathLike[str], num_layers: int
) -> Path:
    """Write a model folder with the first `num_layers` layers of the one in `model_dir`.

    In config.json the number of layers and every list with one entry per layer are cut as well.
    Returns: the new folder.
    Raises: ConfigError if the model has no such number of layers or `out_dir` is not empty;
    WeightError if the checkpoint cannot be read or names no layers.
    """
    source, target = Path(model_dir), Path(out_dir)
    check_empty(target)
    config = _cut_config(source / "config.json", num_layers)
    weights = read_checkpoint(source)
    layers = {name: int(found[1]) for name in weights if (found := _LAYER.search(name))}
    if not layers:
        raise WeightError(
            f"the tensors of {source} name no layers as in 'model.layers.0.', such as "
            f"{min(weights, default='')!r}; cut this checkpoint by hand"
        )
    with atomic_directory(target) as folder:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        kept = {name: weights[name] for name in weights if layers.get(name, -1) < num_layers}
        write_safetensors(folder / "model.safetensors", kept)
        copy_companions(source, folder)
    return target


def _cut_config(file: Path, num_layers: int) -> dict[str, Any]:
    """The config with fewer layers; those of a multimodal model are in its `text_config`."""
    config = serialize.read_object(file)
    nested = config.get("text_config")
    owner = nested if isinstance(nested, dict) and _NUM_LAYERS in nested else config
    present = owner.get(_NUM_LAYERS)
    if not isinstance(present, int) or not 1 <= num_layers <= present:
        raise ConfigError(
            f"num_layers={num_layers} is not between 1 and {_NUM_LAYERS}={present} of {file}; "
            "choose another number"
        )
    for name, value in owner.items():
        is_per_layer = isinstance(value, list) and len(value) == present
        if is_per_layer and not _NOT_PER_LAYER.fullmatch(name):
            owner[name] = value[:num_layers]
    owner[_NUM_LAYERS] = num_layers
    return config

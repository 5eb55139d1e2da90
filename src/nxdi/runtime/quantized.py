"""Folders of quantized weights: under the model's own names, so that nothing is converted again.

`config.json` of such a folder says how it was quantized, as `quantization_config` with the
`quant_method` "nxdi".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nxdi.config import serialize
from nxdi.errors import ConfigError, WeightError
from nxdi.runtime.checkpoint import read_checkpoint, write_safetensors

METHOD = "nxdi"
_ALIASES = "tied_weights.json"
# NeuronConfig's keywords that a folder decides.
KEYWORDS = (
    "quantization_type",
    "quantization_dtype",
    "quantization_scale_dtype",
    "quantization_block_size",
    "quantization_block_axis",
    "modules_to_not_convert",
    "activation_quantization_type",
    "quantize_clamp_bound",
)


def write_quantized(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors; those that share memory once, with their other names beside them."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        known = first.setdefault(tensor.data_ptr(), name)
        if known != name:
            aliases[name] = known
    kept = {name: tensor for name, tensor in tensors.items() if name not in aliases}
    write_safetensors(folder / "model.safetensors", kept)
    (folder / _ALIASES).write_text(json.dumps(aliases, indent=2) + "\n", encoding="utf-8")


def read_quantized(folder: Path) -> dict[str, Tensor]:
    """What `write_quantized` wrote, memory-mapped. Raises: WeightError if it cannot be read."""
    tensors = read_checkpoint(folder)
    try:
        aliases = serialize.parse(serialize.read_text(folder / _ALIASES), _ALIASES)
    except ConfigError as error:
        raise WeightError(f"{folder} holds no weights that nxdi has quantized: {error}") from error
    missing = {name for name in aliases.values() if name not in tensors}
    if missing:
        raise WeightError(f"{folder / _ALIASES} names tensors that are not there: {missing}")
    return {**tensors, **{alias: tensors[name] for alias, name in aliases.items()}}


def is_own(folder: Path) -> bool:
    """Whether `write_quantized` has made this."""
    return (folder / _ALIASES).is_file()


def is_own_record(stored: object) -> bool:
    """Whether a `quantization_config` is that of a folder of nxdi's."""
    return isinstance(stored, Mapping) and stored.get("quant_method") == METHOD


def own_keywords(stored: Mapping[str, Any]) -> dict[str, Any]:
    """NeuronConfig's keywords that such a `quantization_config` decides."""
    return {name: stored[name] for name in KEYWORDS if name in stored}


def folder_quantization(folder: Path) -> Any:
    """What a folder's config.json says of how it is quantized; None: it is not."""
    config = serialize.parse(serialize.read_text(folder / "config.json"), "config.json")
    return config.get("quantization_config")


def check_agrees(folder: Path, options: Mapping[str, Any], decided: Mapping[str, Any]) -> None:
    """Raise ConfigError if `options` ask for another quantization than a folder has."""
    for name, value in decided.items():
        if options.get(name, value) != value:
            raise ConfigError(
                f"{name}={options[name]!r}, but {folder} was quantized with {name}={value!r}; "
                "leave it out, or quantize the original checkpoint anew"
            )


def quantization_record(options: Mapping[str, Any]) -> dict[str, Any]:
    """The `quantization_config` of a folder quantized with these keywords of NeuronConfig."""
    return {
        "quant_method": METHOD,
        **{name: options[name] for name in KEYWORDS if name in options},
    }

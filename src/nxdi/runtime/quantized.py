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
from nxdi.errors import ConfigError, UnsupportedError, WeightError
from nxdi.runtime.checkpoint import read_checkpoint, write_safetensors

METHOD = "nxdi"
_ALIASES = "tied_weights.json"
# NeuronConfig's keywords that a folder decides.
_KEYWORDS = (
    "quantization_type",
    "quantization_dtype",
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


def with_folder_options(folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """NeuronConfig's keywords with those that a folder of quantized weights decides.

    Raises: ConfigError if `options` ask for another quantization; UnsupportedError for a folder
    that another program has quantized.
    """
    config = serialize.parse(serialize.read_text(folder / "config.json"), "config.json")
    stored = config.get("quantization_config")
    if stored is None:
        return dict(options)
    if not isinstance(stored, dict) or stored.get("quant_method") != METHOD:
        method = stored.get("quant_method") if isinstance(stored, dict) else stored
        raise UnsupportedError(
            f"{folder} has weights of quant_method={method!r}, which is not part of this release; "
            "quantize the original checkpoint with `nxdi quantize`"
        )
    decided = {name: stored[name] for name in _KEYWORDS if name in stored}
    for name, value in {"quantized": True, **decided}.items():
        if options.get(name, value) != value:
            raise ConfigError(
                f"{name}={options[name]!r}, but {folder} was quantized with {name}={value!r}; "
                "leave it out, or quantize the original checkpoint anew"
            )
    return {**options, "quantized": True, **decided, "quantized_checkpoints_path": str(folder)}


def quantization_record(options: Mapping[str, Any]) -> dict[str, Any]:
    """The `quantization_config` of a folder quantized with these keywords of NeuronConfig."""
    return {
        "quant_method": METHOD,
        **{name: options[name] for name in _KEYWORDS if name in options},
    }

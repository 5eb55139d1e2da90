"""Recipes: the NeuronConfig options recommended for a model, in a YAML file."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from nxdi.config import serialize
from nxdi.config.keywords import check_known
from nxdi.errors import ConfigError

_KEYS = ("model", "neuron_config")


def load_recipe(path: str | PathLike[str]) -> dict[str, Any]:
    """The NeuronConfig keywords of a recipe, to be checked by NeuronConfig itself.

    A recipe has two keys: `model` names what it is for, and `neuron_config` holds the options.
    Raises: ConfigError if the file cannot be read or has another form.
    """
    import yaml

    file = Path(path)
    try:
        data = yaml.safe_load(serialize.read_text(file))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}; correct it") from error
    if isinstance(data, dict):
        check_known(f"the recipe {file}", (str(key) for key in data), _KEYS)
    if not (isinstance(data, dict) and isinstance(data.get("model"), str)):
        raise ConfigError(
            f"{file} is no recipe: it must map `model` to a name and `neuron_config` to options"
        )
    options = data.get("neuron_config")
    if not (isinstance(options, dict) and all(isinstance(name, str) for name in options)):
        raise ConfigError(
            f"{file}: neuron_config={options!r} must map option names to values, as in "
            "`neuron_config: {seq_len: 1024}`"
        )
    return options

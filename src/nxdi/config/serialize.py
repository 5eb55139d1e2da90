"""Configs as JSON: dtypes and classes by name, nothing executed on reading."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import stat
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from nxdi.config.keywords import KeywordConfig, check_known
from nxdi.config.limits import shown
from nxdi.errors import ConfigError

CONFIG_FILE = "neuron_config.json"

# A JSON file may come from anywhere. In memory a value takes up to 200 bytes.
MAX_FILE_SIZE = 4 << 20  # bytes
_MAX_VALUES = 500_000
_MAX_DEPTH = 64
_CLASS = {"__module__", "__name__"}
_OWN_CODE = ("nxdi.models.", "nxdi.modules.")
_NAMESPACE, _PAIRS, _FLOAT = "__namespace__", "__pairs__", "__float__"


def to_json_string(attributes: dict[str, Any]) -> str:
    """Attributes as sorted JSON.

    Raises: ConfigError naming a value that has no JSON form, such as a function or a tensor.
    """
    return json.dumps(encode(attributes), indent=2, sort_keys=True, allow_nan=False)


def encode(value: Any, name: str = "config") -> Any:
    """A value as JSON data; private attributes of objects are left out. `name` is for errors."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_FLOAT: str(value)}
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, type):
        return {"__module__": value.__module__, "__name__": value.__qualname__}
    if isinstance(value, (list, tuple)):
        return [encode(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        return _encode_dict(value, name)
    if isinstance(value, SimpleNamespace):
        return {_NAMESPACE: _encode_dict(public(value), name)}
    if isinstance(value, KeywordConfig):
        return _encode_dict(public(value), name)
    raise ConfigError(
        f"{name}={value!r} cannot be saved as JSON; use plain values, or a name starting with "
        "an underscore, which is not saved"
    )


def _encode_dict(value: dict[Any, Any], name: str) -> dict[str, Any]:
    if all(isinstance(key, str) for key in value):
        return {key: encode(item, f"{name}.{key}") for key, item in value.items()}
    return {_PAIRS: [[encode(k), encode(v, f"{name}[{k!r}]")] for k, v in value.items()]}


def public(obj: object) -> dict[str, Any]:
    """The attributes of an object whose names do not start with an underscore."""
    return {name: value for name, value in vars(obj).items() if not name.startswith("_")}


def decode(value: Any) -> Any:
    """The inverse of `encode`, except that dtypes stay names and tuples come back as lists.

    Raises: ConfigError for a damaged value or a class that cannot be found.
    """
    try:
        return _decode(value)
    except ConfigError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the saved value {shown(value)} is damaged: {error}; restore it"
        ) from error


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == _CLASS:
        return _find_class(value["__module__"], value["__name__"])
    if value.keys() == {_FLOAT}:
        return float(value[_FLOAT])
    if value.keys() == {_NAMESPACE}:
        return SimpleNamespace(**_decode(value[_NAMESPACE]))
    if value.keys() == {_PAIRS}:
        return {key: _decode(item) for key, item in value[_PAIRS]}
    return {key: _decode(item) for key, item in value.items()}


def _find_class(module_name: str, name: str) -> type:
    """A class by name, without importing any but our own model code: a file is only data."""
    if module_name.startswith(_OWN_CODE) and module_name not in sys.modules:
        try:
            importlib.import_module(module_name)
        except ImportError as error:
            raise ConfigError(f"no module {module_name!r} for the class {name!r}") from error
    if module_name not in sys.modules:
        raise ConfigError(
            f"the class {module_name}.{name} is not loaded; import {module_name} before reading "
            "this config"
        )
    found: Any = sys.modules[module_name]
    for part in name.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type):
        raise ConfigError(f"{module_name} has no class {name!r}; define it at module level")
    return found


def parse(text: str, source: str) -> dict[str, Any]:
    """Read a JSON object; `source` names it in errors.

    Raises: ConfigError if the text is not JSON, is not an object, says a name twice, or holds more
    values or levels than any real one.
    """
    # One mark before each value; those in strings count too.
    if (count := sum(map(text.count, ",[{"))) > _MAX_VALUES:
        raise ConfigError(
            f"{source} holds about {count} values, more than {_MAX_VALUES}; restore it"
        )
    try:
        data = json.loads(text, object_pairs_hook=_unique)
        _check_depth(data, _MAX_DEPTH)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid JSON ({error}); restore it") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{source} holds a {type(data).__name__}, not an object; restore it")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The standard leaves open which of two equal names counts, and so readers differ."""
    data = dict(pairs)
    if len(data) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it gives {shown(name)} twice")
    return data


def _check_depth(value: Any, levels: int) -> None:
    if not isinstance(value, (dict, list)):
        return
    if levels == 0:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
    for item in value.values() if isinstance(value, dict) else value:
        _check_depth(item, levels - 1)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a config file. Raises: ConfigError, as `read_text` and `parse` do."""
    return parse(read_text(path), str(path))


def read_text(path: Path, max_size: int = MAX_FILE_SIZE) -> str:
    """The text of a config file, which may be a link: the Hub's cache is made of links.

    Raises: ConfigError if it is missing, is no regular file, is not UTF-8 text, or is larger than
    `max_size` bytes.
    """
    try:
        # A pipe would be waited for without end, and a device read without end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"cannot read {path}: it is no regular file; check the folder")
        with open(path, "rb") as file:
            data = file.read(max_size + 1)
        if len(data) > max_size:
            raise ConfigError(f"{path} is larger than {max_size} bytes; restore it")
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}; check the folder") from error


def make_config(cls: type[KeywordConfig], data: dict[str, Any]) -> KeywordConfig:
    """Rebuild a config from its JSON data.

    A subclass may set attributes in its own `__init__` that it does not take as keywords; those
    are set after construction.
    """
    keywords = {f.name for f in fields(cls)} | inspect.signature(cls).parameters.keys()
    config = cls(**{name: decode(value) for name, value in data.items() if name in keywords})
    check_known(cls.__name__, data, {*keywords, *vars(config)})
    for name in data.keys() - keywords:
        if encode(getattr(config, name)) != data[name]:
            setattr(config, name, decode(data[name]))
    return config

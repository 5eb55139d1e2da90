"""The base of the option classes: keyword-only, typed, closed to unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

import torch

from nxdi.errors import ConfigError

_SCALARS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
}


def derived(rule: Callable[[Any], Any]) -> Any:
    """Declare a field whose default `rule(config)` follows from the fields above it.

    Giving None for such a field means the same as leaving it out.
    """
    return field(metadata={"rule": rule})


@dataclass(init=False, repr=False, eq=False)
class KeywordConfig:
    """A dataclass built from keywords only; a subclass adds fields with `@dataclass(init=False)`.

    Raises: ConfigError for an unknown keyword or a value of the wrong type.
    """

    def __init__(self, **options: Any) -> None:
        declared = fields(self)
        check_known(type(self).__name__, options, (f.name for f in declared))
        for f in declared:
            given = options.get(f.name, MISSING)
            if given is MISSING or (given is None and "rule" in f.metadata):
                given = default_of(self, f)
            _check_type(type(self).__name__, f, given)
            setattr(self, f.name, given)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return vars(self) == vars(other)

    def __repr__(self) -> str:
        changed = (f"{f.name}={getattr(self, f.name)!r}" for f in changed_fields(self))
        return f"{type(self).__name__}({', '.join(changed)})"


def changed_fields(config: KeywordConfig) -> list[Field[Any]]:
    """The fields whose value is not their default."""
    return [f for f in fields(config) if getattr(config, f.name) != default_of(config, f)]


def default_of(config: KeywordConfig, f: Field[Any]) -> Any:
    """The default of one field, given the fields before it."""
    if "rule" in f.metadata:
        return f.metadata["rule"](config)
    return f.default_factory() if f.default_factory is not MISSING else f.default


def check_known(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that `owner` does not have, with the nearest ones it has."""
    names = list(known)
    unknown = sorted(set(given) - set(names))
    if not unknown:
        return
    described = []
    for name in unknown:
        near = difflib.get_close_matches(name, names, n=3)
        described.append(f"{name!r}" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
    raise ConfigError(
        f"{owner} has no option {', '.join(described)}; remove it or correct its name"
    )


def to_torch_dtype(name: str | torch.dtype) -> torch.dtype:
    """The torch dtype called `name` ("bfloat16" or "torch.bfloat16").

    Raises: ConfigError if torch has no such dtype.
    """
    if isinstance(name, torch.dtype):
        return name
    found = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ConfigError(f"{name!r} is not a torch dtype; use a name such as 'bfloat16'")
    return found


def _check_type(owner: str, f: Field[Any], value: Any) -> None:
    """Check the scalar fields, where a wrong type would be used silently ("False" is true)."""
    declared = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", "")
    kind, _, rest = declared.partition(" | ")
    if kind not in _SCALARS or (rest == "None" and value is None):
        return
    if not isinstance(value, _SCALARS[kind]) or (isinstance(value, bool) and kind != "bool"):
        raise ConfigError(f"{owner}: {f.name}={value!r} must be of type {declared}")

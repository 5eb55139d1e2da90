"""Reading `quantization_config`, which comes from a file and may hold anything."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nxdi.config.limits import shown
from nxdi.errors import UnsupportedError, WeightError

_MAX_PATTERN = 200  # characters
_MAX_REPEATS = 6  # each may multiply the time of a search by the length of a name
_PATTERN = "re:"


def mapping(value: object, what: str) -> Mapping[str, Any]:
    """Raises: WeightError unless `value` is a mapping."""
    if not isinstance(value, Mapping):
        raise WeightError(f"{what} is {shown(value)}, not a mapping; restore config.json")
    return value


def names(value: object, what: str) -> list[str]:
    """A list of names, or nothing. Raises: WeightError."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise WeightError(f"{what} is {shown(value)}, not a list of names; restore config.json")
    return value


def sizes(value: object, what: str) -> tuple[int, int]:
    """(rows, columns) of a block. Raises: WeightError."""
    if (
        not isinstance(value, Sequence)
        or len(value) != 2
        or not all(type(size) is int and 0 < size < 1 << 31 for size in value)
    ):
        raise WeightError(f"{what} is {shown(value)}, not two sizes; restore config.json")
    return value[0], value[1]


def refuse_others(
    quantization: Mapping[str, Any], understood: Mapping[str, tuple[Any, ...]]
) -> None:
    """Raise UnsupportedError for a field with a value that would change what weights mean."""
    for name, values in understood.items():
        if quantization.get(name) not in values:
            raise UnsupportedError(
                f"quantization_config has {name}={shown(quantization.get(name))}, which is not "
                f"read; it may be {' or '.join(map(repr, values))}"
            )


def matcher(patterns: Sequence[str], what: str) -> Callable[[str], bool]:
    """Whether a module's name is one of `patterns`, or is matched by one that begins with "re:".

    Raises: UnsupportedError for an expression that could take very long.
    """
    expressions = [
        _expression(pattern, what) for pattern in patterns if pattern.startswith(_PATTERN)
    ]
    plain = {pattern for pattern in patterns if not pattern.startswith(_PATTERN)}
    return lambda name: name in plain or any(found.match(name) for found in expressions)


def _expression(pattern: str, what: str) -> re.Pattern[str]:
    text = pattern.removeprefix(_PATTERN)
    repeats = len(re.findall(r"[*+{]", text))
    if len(text) > _MAX_PATTERN or repeats > _MAX_REPEATS or re.search(r"\)[*+{?]|\\[1-9]", text):
        raise UnsupportedError(
            f"{what} has the expression {shown(pattern)}, which may take very long; write it with "
            f"at most {_MAX_REPEATS} repeats and none of a group"
        )
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise WeightError(
            f"{what} has {shown(pattern)}, which is no expression: {error}; restore config.json"
        ) from error

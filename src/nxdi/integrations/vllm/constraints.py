"""Limits on structured outputs, before vLLM hands them to a grammar compiler.

The compilers take time and memory without bound for some constraints, or end the process, so one
request could take the server from all others. What is refused here could not be met by the few
thousand tokens of an answer either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from vllm.exceptions import VLLMValidationError

MAX_CHARACTERS = 50_000  # of a constraint as text
MAX_NODES = 5_000  # values in a schema, or choices
MAX_COUNT = 4_096  # items, characters or properties that a schema may ask for
MAX_REPEATS = 100_000  # all bounds of repetition in a pattern, multiplied

_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
# A search must take time in proportion to the text, which is as long as somebody likes.
_REPEAT = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_NAME = re.compile(r"[\w-]+")


def check_constraints(structured: Any) -> None:
    """Raises: vLLM's error for a bad request, for constraints beyond the limits."""
    if structured is None:
        return
    if structured.json is not None:
        _check_schema(structured.json)
    if structured.regex is not None:
        _check_regex(structured.regex)
    if structured.grammar is not None:
        _check_grammar(structured.grammar)
    if structured.choice is not None:
        _check_number("choice", len(structured.choice), MAX_NODES)
        _check_length("choice", "".join(map(str, structured.choice)))


def _check_schema(given: str | dict[str, Any]) -> None:
    text = given if isinstance(given, str) else json.dumps(given)
    _check_length("json", text)
    try:
        schema = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise VLLMValidationError(f"structured_outputs.json is not JSON: {error}") from error
    num_nodes = 0
    for node in _nodes(schema):
        num_nodes += 1
        if isinstance(node, dict):
            _check_node(schema, node)
    _check_number("json", num_nodes, MAX_NODES)


def _check_node(schema: Any, node: dict[str, Any]) -> None:
    for name in _COUNTS:
        value = node.get(name)
        if isinstance(value, (int, float)) and not 0 <= value <= MAX_COUNT:
            raise VLLMValidationError(f"{name}={value} of a schema must be 0 to {MAX_COUNT}")
    if isinstance(node.get("pattern"), str):
        _check_regex(node["pattern"])
    seen: list[str] = []
    while isinstance(node, dict) and isinstance(node.get("$ref"), str):
        target = node["$ref"]
        if target in seen or not target.startswith("#"):
            raise VLLMValidationError(
                f"$ref {target!r} of a schema must lead to another place in it, such as "
                "'#/$defs/name'"
            )
        seen.append(target)
        node = _resolve(schema, target)


def _resolve(schema: Any, target: str) -> Any:
    """What a reference such as "#/$defs/name" names; None: nothing."""
    for part in target.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        schema = schema.get(name) if isinstance(schema, dict) else None
    return schema


def _nodes(schema: Any) -> Iterator[Any]:
    """Every value of a schema. Without recursion: it may be nested as deep as its text is long."""
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, dict):
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _check_regex(pattern: str) -> None:
    _check_length("regex", pattern)
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise VLLMValidationError("structured_outputs.regex ends within an escape")
    repeats = (max(map(_bound, repeat)) for repeat in _REPEAT.findall(pattern))
    product = 1
    for repeat in repeats:  # no further than needed: the product may have any number of digits
        product *= repeat
        _check_number("regex", product, MAX_REPEATS)


def _bound(digits: str) -> int:
    return max(1, int(digits[:20] or 1))


def _check_grammar(grammar: str) -> None:
    _check_length("grammar", grammar)
    parts = [part.split() for part in grammar.split("::=")]  # each but the last ends in a name
    bodies = [*(part[:-1] for part in parts[1:-1]), parts[-1]]
    for part, body in zip(parts[:-1], bodies, strict=False):
        name = part[-1] if part else ""
        if _NAME.fullmatch(name) and body in ([], [name]):
            raise VLLMValidationError(f"rule {name!r} of the grammar allows nothing")


def _check_length(name: str, text: str) -> None:
    _check_number(name, len(text), MAX_CHARACTERS)


def _check_number(name: str, number: int, limit: int) -> None:
    if number > limit:
        raise VLLMValidationError(
            f"structured_outputs.{name} is too large: {number:.6g}, and at most {limit} are taken"
        )

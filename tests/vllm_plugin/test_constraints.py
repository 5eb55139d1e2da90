"""Constraints that a grammar compiler would not survive are refused before it sees them."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_plugin.hostile import nested


def check(**constraint: Any) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    from nxdi.integrations.vllm.constraints import check_constraints

    check_constraints(StructuredOutputsParams(**constraint))


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"json": {"type": "array", "minItems": 10**9}}, "minItems"),
        ({"json": {"type": "string", "maxLength": -1}}, "maxLength"),
        ({"json": {"$ref": "#"}}, "another place"),
        ({"json": {"$ref": "http://localhost/schema"}}, "another place"),
        ({"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}, "another place"),
        ({"json": {"enum": list(range(9000))}}, "too large"),
        ({"json": '{"type": "string"'}, "not JSON"),
        ({"json": {"type": "string", "pattern": "((a{99}){99}){99}"}}, "too large"),
        ({"regex": "((a{0,100}){0,100}){0,100}"}, "too large"),
        ({"regex": "a" * 100_000}, "too large"),
        ({"regex": "a\\"}, "escape"),
        ({"regex": "a{" + "9" * 40_000 + "}"}, "too large"),
        ({"regex": "(a{99})" * 5_000}, "too large"),
        ({"grammar": "root ::= a\na ::= a\n"}, "rule 'a'"),
        ({"grammar": "a ::=\n  a\nroot ::= a"}, "rule 'a'"),
        ({"grammar": "a ::= b ::= c"}, "rule 'a'"),
        ({"grammar": "root ::= "}, "rule 'root'"),
        ({"grammar": "x" * 100_000}, "too large"),
        ({"choice": ["x"] * 9000}, "too large"),
    ],
)
def test_beyond_the_limits(constraint: dict[str, Any], message: str) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=message):
        check(**constraint)


@pytest.mark.parametrize(
    "constraint",
    [
        {"json": nested(40)},
        {"json": {"type": "array", "minItems": 3, "items": {"$ref": "#/$defs/~0a~1b"}}},
        {"json": {"type": "object", "properties": {"next": {"$ref": "#"}}}},
        {"json": '{"type": "string", "maxLength": 100}'},
        {"regex": r"[a-z]{2,40}\.\\"},
        {"grammar": 'root ::= "a" root | "b"'},
        {"grammar": 'root ::= a "::="\na ::= a "x" | "a ::= a"'},
        # As long as any may be, of what is slow to search.
        {"grammar": "x" * 50_000},
        {"grammar": "\n" * 50_000},
        {"regex": "{" + "1" * 49_999},
        {"choice": ["yes", "no"]},
        {"json_object": True},
    ],
)
def test_what_people_ask_for_passes(constraint: dict[str, Any]) -> None:
    check(**constraint)

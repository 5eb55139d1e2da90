from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nxdi.errors import ConfigError
from nxdi.generation.speculation import PromptLookup
from nxdi.generation.speculation.proposals import Wanted


def proposed(tokens: list[int], most: int = 3, **options: Any) -> list[int]:
    sequence: Any = SimpleNamespace(id=0, tokens=tokens)
    rule: Any = None
    (proposal,) = PromptLookup(**options).propose([Wanted(sequence, most)], rule)
    assert proposal.draft is None
    return proposal.tokens


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 4, 5, 1, 2], [3, 4, 5]),
        ([7, 2, 9, 9, 9, 1, 2, 8, 8, 8, 7, 2], [9, 9, 9]),  # two tokens tell more than one
        ([1, 2, 3, 3, 3, 1, 2, 4, 4, 4, 1, 2], [4, 4, 4]),  # the latest
        ([5, 6, 6, 6, 6], [6]),  # of three there is one token behind
        ([1, 2, 3, 9, 1, 2], [3, 9, 1]),
        ([3, 9, 3], [9, 3]),
        ([1, 2, 3], []),
        ([4], []),
    ],
)
def test_what_followed_before(tokens: list[int], expected: list[int]) -> None:
    assert proposed(tokens) == expected


def test_where_several_occur_one_with_enough_behind_it_wins() -> None:
    assert proposed([1, 2, 5, 5, 5, 1, 2, 6, 1, 2], most=4) == [5, 5, 5, 1]
    assert proposed([1, 2, 5, 5, 5, 1, 2, 6, 1, 2], most=3) == [6, 1, 2]


def test_no_more_than_are_wanted_or_allowed() -> None:
    tokens = [1, 2, 3, 4, 5, 1, 2]
    assert proposed(tokens, most=0) == []
    assert proposed(tokens, most=2) == [3, 4]
    assert proposed(tokens, num_tokens=1) == [3]
    assert proposed([1, 2, 7, 9, 2], max_ngram=1) == [7, 9, 2]


def test_shorter_matches_than_asked_for_are_none() -> None:
    tokens = [1, 2, 3, 4, 5, 1, 2]
    assert proposed(tokens, min_ngram=2) == [3, 4, 5]
    assert proposed(tokens, min_ngram=3) == []
    assert proposed([9, *tokens, 9, 1, 2], min_ngram=3) == [3, 4, 5]
    with pytest.raises(ConfigError, match="min_ngram=4 is above max_ngram=3"):
        PromptLookup(min_ngram=4)


@pytest.mark.parametrize("name", ["num_tokens", "max_ngram", "min_ngram"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=0 proposes nothing"):
        PromptLookup(**{name: 0})

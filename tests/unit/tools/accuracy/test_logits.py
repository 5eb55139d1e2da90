from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nxdi.errors import NxdiError, ShapeError
from nxdi.tools.accuracy.logits import (
    LogitMatchingValidationError,
    check_results,
    first_failure,
    match_logits,
)

VOCAB = 2000


def falling(num_tokens: int = 3, num_rows: int = 2) -> Tensor:
    """Logits [T, B, V] from 10 down to 0, token 0 the likeliest."""
    return torch.linspace(10, 0, VOCAB).expand(num_tokens, num_rows, VOCAB).clone()


def test_equal_logits_pass() -> None:
    results = match_logits(falling(), falling())
    assert [len(row) for row in results] == [3, 3]
    assert first_failure(results) is None
    check_results(results)


# Token number n is the n-th likeliest; the largest logit is 10.
@pytest.mark.parametrize(
    ("token", "error", "passes"),
    [
        (4, 0.099, True),  # among 5: 1 % of 10
        (4, 0.102, False),
        (5, 0.15, True),  # among 50: 2 %
        (5, 0.21, False),
        (49, 0.21, False),
        (50, 0.21, True),  # among 1000: 3 %
        (50, 0.31, False),
        (1000, 0.31, True),  # among all: 5 %
        (1000, 0.51, False),
        (1999, -0.51, False),
    ],
)
def test_the_tolerance_depends_on_the_rank(token: int, error: float, passes: bool) -> None:
    actual = falling()
    actual[1, 0, token] -= error
    actual[1, 0, 0] = 10.05  # stays the likeliest
    results = match_logits(actual, falling())
    assert results[0][1]["passed"] == passes
    assert results[1][1]["passed"]


@pytest.mark.parametrize(("gap", "passes"), [(0.0009, True), (0.0011, False)])
def test_two_tokens_may_change_places_if_the_reference_has_them_close(
    gap: float, passes: bool
) -> None:
    expected = falling()
    expected[2, 1, 7] = 10 - gap
    actual = expected.clone()
    actual[2, 1, 7] = 10.0005
    result = match_logits(actual, expected)[1][2]
    assert (result["expected_token"], result["actual_token"]) == (0, 7)
    assert result["is_tie"] == passes == result["passed"]
    assert result["difference"] == pytest.approx(gap, abs=2e-6)


def test_a_wider_tie_may_be_allowed() -> None:
    expected = falling()
    expected[0, 0, 7] = 9.99
    actual = expected.clone()
    actual[0, 0, 7] = 10.0005
    assert not match_logits(actual, expected)[0][0]["passed"]
    assert match_logits(actual, expected, divergence_difference_tol=0.02)[0][0]["passed"]


def test_tolerances_may_be_given() -> None:
    actual = falling()
    actual[0, 0, 3] -= 0.5
    assert not match_logits(actual, falling())[0][0]["passed"]
    assert match_logits(actual, falling(), tol_map={None: (0.0, 0.051)})[0][0]["passed"]
    assert not match_logits(actual, falling(), tol_map={1: (0, 0), 4: (0.4, 0)})[0][0]["passed"]


def test_the_divergence_index_is_the_first_over_all_rows() -> None:
    actual = falling(num_tokens=5)
    actual[3, 0, 0] = actual[2, 1, 0] = actual[4, 1, 0] = 5
    results = match_logits(actual, falling(num_tokens=5))
    with pytest.raises(LogitMatchingValidationError) as caught:
        check_results(results)
    assert caught.value.get_divergence_index() == 2
    assert caught.value.results is results
    assert "generated token 2 of row 1" in caught.value.message
    assert "differ by 5" in caught.value.message
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, NxdiError)
    assert (
        LogitMatchingValidationError("", match_logits(falling(), falling())).get_divergence_index()
        == -1
    )


def test_a_failure_by_choice_names_both_tokens() -> None:
    expected = falling()
    expected[0, 0, 7] = 9.99
    actual = expected.clone()
    actual[0, 0, 7] = 10.0005
    with pytest.raises(LogitMatchingValidationError, match=r"chooses 0, the model 7.* 0.01, more"):
        check_results(match_logits(actual, expected))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_fails(wrong: float) -> None:
    actual = falling()
    actual[1, 1, 1500] = wrong
    assert first_failure(match_logits(actual, falling())) == (1, 1)


def test_equal_infinities_are_equal() -> None:
    logits = falling()
    logits[..., 1990:] = -math.inf
    assert first_failure(match_logits(logits.clone(), logits)) is None


@pytest.mark.parametrize("shape", [(3, 2, 1999), (2, 2, VOCAB), (3, 2 * VOCAB)])
def test_shapes_must_be_alike(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="tokens, rows, vocabulary"):
        match_logits(torch.zeros(shape), falling())


def test_fewer_tokens_than_a_tolerance_names() -> None:
    small = torch.tensor([[[3.0, 2.0, 1.0]]])
    assert first_failure(match_logits(small, small)) is None

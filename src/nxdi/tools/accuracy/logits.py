"""Whether logits match a reference, position by position: likeliest tokens first, ties set apart.

The positions are independent: at each of them both sides have seen the reference's tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import torch
from torch import Tensor

from nxdi.errors import NxdiError, ShapeError

# Of the reference's logits: two tokens this close may change places.
DIVERGENCE_DIFFERENCE_TOL = 0.001

# How many of the reference's likeliest tokens (None: all) -> (atol, rtol). The numbers are NxDI's.
TolMap = Mapping[int | None, tuple[float, float]]
TOL_MAP: TolMap = {5: (1e-5, 0.01), 50: (1e-5, 0.02), 1000: (1e-5, 0.03), None: (1e-5, 0.05)}


class TopKError(TypedDict):
    """The largest error among some of the likeliest tokens, and the most that is allowed."""

    error: float
    tolerance: float


class TokenResult(TypedDict):
    """The comparison at one position of one row.

    difference: between the reference's logits of the two tokens chosen; 0 if they are one.
    top_k: by the number of likeliest tokens, "all" for the whole vocabulary.
    """

    passed: bool
    expected_token: int
    actual_token: int
    is_tie: bool
    difference: float
    top_k: dict[str, TopKError]


Results = list[list[TokenResult]]


class LogitMatchingValidationError(NxdiError, AssertionError):
    """Logits or tokens differ from the reference by more than the tolerances.

    results[row][token]: the comparison of each generated token.
    """

    def __init__(self, message: str, results: Results) -> None:
        super().__init__(message)
        self.message, self.results = message, results

    def get_divergence_index(self) -> int:
        """The first generated token (from 0) that failed in any row; -1 if none did."""
        failed = first_failure(self.results)
        return -1 if failed is None else failed[0]


def match_logits(
    actual: Tensor,
    expected: Tensor,
    divergence_difference_tol: float = DIVERGENCE_DIFFERENCE_TOL,
    tol_map: TolMap | None = None,
) -> Results:
    """Compare logits [T, B, V] of T tokens in B rows, both computed after the reference's tokens.

    A position passes if, for every entry of `tol_map`, no logit of the reference's likeliest tokens
    is off by more than atol + rtol * the largest of them, and if the chosen tokens are equal or
    tie: the reference's logits for them differ by at most `divergence_difference_tol`.
    Raises: ShapeError for different shapes.
    """
    if actual.shape != expected.shape or actual.dim() != 3:
        raise ShapeError(
            f"logits of shape {tuple(actual.shape)} cannot be compared with the expected "
            f"{tuple(expected.shape)}; both must be [tokens, rows, vocabulary]"
        )
    tolerances = TOL_MAP if tol_map is None else tol_map
    num_tokens, num_rows, _ = actual.shape
    return [
        [
            _match(actual[t, b], expected[t, b], divergence_difference_tol, tolerances)
            for t in range(num_tokens)
        ]
        for b in range(num_rows)
    ]


def check_results(results: Results) -> None:
    """Raises: LogitMatchingValidationError that says where the first failure is, and how large."""
    failed = first_failure(results)
    if failed is not None:
        raise LogitMatchingValidationError(describe_failure(results, *failed), results)


def first_failure(results: Results) -> tuple[int, int] | None:
    """(token, row) of the first failure."""
    failures = [
        (index, row)
        for row, of_row in enumerate(results)
        for index, result in enumerate(of_row)
        if not result["passed"]
    ]
    return min(failures, default=None)


def describe_failure(results: Results, index: int, row: int) -> str:
    """One line: the token, the row, the error and its tolerance."""
    result = results[row][index]
    place = f"generated token {index} of row {row}"
    for count, found in result["top_k"].items():
        if not found["error"] <= found["tolerance"]:
            return (
                f"{place}: the logits of the likeliest tokens ({count}) differ by "
                f"{found['error']:.3g}, tolerance {found['tolerance']:.3g}"
            )
    return (
        f"{place}: the reference chooses {result['expected_token']}, the model "
        f"{result['actual_token']}; the reference's logits for them differ by "
        f"{result['difference']:.3g}, more than a tie"
    )


def _match(actual: Tensor, expected: Tensor, tie_tol: float, tolerances: TolMap) -> TokenResult:
    actual, expected = actual.float(), expected.float()
    chosen, wanted = int(actual.argmax()), int(expected.argmax())
    difference = float(expected[wanted] - expected[chosen])
    is_tie = chosen != wanted and difference <= tie_tol
    # Equal infinities, as masked logits have, do not differ.
    errors = torch.where(actual == expected, 0.0, (actual - expected).abs())
    top_k = {
        "all" if k is None else str(k): _top_k_error(errors, expected, k, *tolerance)
        for k, tolerance in tolerances.items()
    }
    # A NaN is in no order, so it passes no comparison.
    is_close = all(found["error"] <= found["tolerance"] for found in top_k.values())
    return {
        "passed": is_close and (chosen == wanted or is_tie),
        "expected_token": wanted,
        "actual_token": chosen,
        "is_tie": is_tie,
        "difference": difference,
        "top_k": top_k,
    }


def _top_k_error(
    errors: Tensor, expected: Tensor, k: int | None, atol: float, rtol: float
) -> TopKError:
    count = len(expected) if k is None else min(k, len(expected))
    likeliest = expected.topk(count).indices
    magnitudes = expected[likeliest].abs()
    largest = float(magnitudes[magnitudes.isfinite()].max())
    return {"error": float(errors[likeliest].max()), "tolerance": atol + rtol * largest}

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nxdi.errors import ConfigError
from nxdi.utils.testing import validate_accuracy

X = torch.ones(3)


def double(x: Tensor) -> Tensor:
    return 2 * x


def test_what_is_right_passes() -> None:
    validate_accuracy(double, [(X,), (X + 1,)], [2 * X, 2 * X + 2])
    validate_accuracy(double, [(X,)], cpu_callable=lambda x: x + x)
    validate_accuracy(double, [(X,)], [2 * X], double)


@pytest.mark.parametrize(
    "keywords",
    [
        {"expected_outputs": [3 * X]},
        {"cpu_callable": lambda x: x},
        {"expected_outputs": [2 * X], "cpu_callable": lambda x: x},
        {"expected_outputs": [3 * X], "cpu_callable": lambda x: 3 * x},
        {"expected_outputs": [torch.full((3,), torch.nan)]},
        {"expected_outputs": [torch.full((4,), 2.0)]},
        {"expected_outputs": [(2 * X).double()]},
    ],
)
def test_what_is_wrong_fails(keywords: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        validate_accuracy(double, [(X,)], **keywords)


def test_the_last_of_several_inputs_is_compared() -> None:
    with pytest.raises(AssertionError):
        validate_accuracy(double, [(X,), (X,)], [2 * X, X])


def test_tolerances_are_the_callers() -> None:
    expected = [2 * X + 0.01]
    with pytest.raises(AssertionError):
        validate_accuracy(double, [(X,)], expected)
    validate_accuracy(double, [(X,)], expected, assert_close_kwargs={"rtol": 0, "atol": 0.02})


def test_arguments_that_fit_nothing() -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        validate_accuracy(double, [(X,)])
    with pytest.raises(ConfigError, match="1 expected_outputs for 2 inputs"):
        validate_accuracy(double, [(X,), (X,)], [X])
    for inputs in ([], [X], [(1,)], X):
        with pytest.raises(ConfigError, match="list of tuples"):
            validate_accuracy(double, inputs, [X])  # type: ignore[arg-type]  # the mistake

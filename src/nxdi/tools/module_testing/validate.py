"""Whether a built module computes what is expected of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nxdi.errors import ConfigError


def validate_accuracy(
    neuron_model: Callable[..., Any],
    inputs: Sequence[tuple[Tensor, ...]],
    expected_outputs: Sequence[Any] | None = None,
    cpu_callable: Callable[..., Any] | None = None,
    assert_close_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Call `neuron_model` with each of `inputs` and compare what it returns.

    expected_outputs: one for each of the inputs; cpu_callable: computes them. Given both, the
    callable must meet the expectation as well.
    assert_close_kwargs: keywords of torch.testing.assert_close, such as rtol and atol.
    Raises: AssertionError where results differ; ConfigError for arguments that fit nothing.
    """
    check_inputs("inputs", inputs)
    if expected_outputs is None and cpu_callable is None:
        raise ConfigError("nothing to compare with; give expected_outputs or cpu_callable")
    if expected_outputs is not None and len(expected_outputs) != len(inputs):
        raise ConfigError(
            f"{len(expected_outputs)} expected_outputs for {len(inputs)} inputs; give one for each"
        )
    keywords = dict(assert_close_kwargs or {})
    for place, arguments in enumerate(inputs):
        references = [] if expected_outputs is None else [expected_outputs[place]]
        if cpu_callable is not None:
            references.append(cpu_callable(*arguments))
        actual = neuron_model(*arguments)
        for reference in references:
            torch.testing.assert_close(actual, reference, **keywords)
        if len(references) == 2:
            torch.testing.assert_close(references[1], references[0], **keywords)


def check_inputs(name: str, inputs: Sequence[tuple[Tensor, ...]]) -> None:
    """Raises: ConfigError unless `inputs` is one or more tuples of tensors."""
    are_tuples = isinstance(inputs, (list, tuple)) and all(
        isinstance(each, tuple) and all(isinstance(tensor, Tensor) for tensor in each)
        for each in inputs
    )
    if not (are_tuples and inputs):
        raise ConfigError(f"{name} must be a list of tuples of tensors, such as [(x,)]")

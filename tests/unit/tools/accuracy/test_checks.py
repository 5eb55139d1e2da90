from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from nxdi.errors import ConfigError, ShapeError, UnsupportedError
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.tools.accuracy.checks import match_tokens
from nxdi.tools.accuracy.reference import load_reference
from nxdi.tools.accuracy.tensors import replace_tensors
from nxdi.utils.accuracy import (
    LogitMatchingValidationError,
    check_accuracy,
    check_accuracy_logits_v2,
    generate_expected_logits,
)

IDS = torch.tensor([[3, 1, 4, 1, 5], [0, 0, 9, 2, 6]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
INPUTS = {"input_ids": IDS, "attention_mask": MASK}


class LateFault:
    """Turns the logits around from the given step on; every rank calls it once in a step."""

    def __init__(self, app: NeuronBaseForCausalLM, step: int) -> None:
        self.left = step * app.neuron_config.tp_degree

    def __call__(self, logits: Tensor) -> Tensor:
        self.left -= 1
        return logits if self.left >= 0 else -logits


def test_a_right_model_passes(app: NeuronBaseForCausalLM) -> None:
    results = check_accuracy(app, inputs=INPUTS, num_tokens_to_check=6)
    assert [len(row) for row in results] == [6, 6]
    expected = generate_expected_logits(app, IDS, MASK, GenerationConfig(), num_tokens=6)
    assert expected.shape == (6, 2, 97)
    results = check_accuracy_logits_v2(app, expected, IDS, MASK, GenerationConfig())
    assert all(result["passed"] for row in results for result in row)


def test_the_side_of_the_padding_does_not_matter(app: NeuronBaseForCausalLM) -> None:
    right = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
    expected = generate_expected_logits(app, IDS, MASK, num_tokens=3)
    of_right = generate_expected_logits(app, right, MASK.flip(1), num_tokens=3)
    assert torch.equal(of_right[:, 1], expected[:, 1])
    check_accuracy_logits_v2(app, expected, right, MASK.flip(1))


def test_tokens_that_differ_are_found(app: NeuronBaseForCausalLM) -> None:
    with (
        replace_tensors(app, {"lm_head": LateFault(app, 3)}),
        pytest.raises(LogitMatchingValidationError, match="generated token 3 of row 0") as caught,
    ):
        check_accuracy(app, inputs=INPUTS, num_tokens_to_check=6)
    assert caught.value.get_divergence_index() == 3


def test_logits_that_differ_are_found(app: NeuronBaseForCausalLM) -> None:
    expected = generate_expected_logits(app, IDS, MASK, num_tokens=6)
    with (
        replace_tensors(app, {"lm_head": LateFault(app, 2)}),
        pytest.raises(LogitMatchingValidationError) as caught,
    ):
        check_accuracy_logits_v2(app, expected, IDS, MASK)
    assert caught.value.get_divergence_index() == 2
    # All positions are compared: those before are right, all after are not.
    assert [r["passed"] for r in caught.value.results[0]] == [True] * 2 + [False] * 4


def test_only_some_tokens_may_be_checked(app: NeuronBaseForCausalLM) -> None:
    expected = generate_expected_logits(app, IDS, MASK, num_tokens=6)
    expected[4] *= -1
    results = check_accuracy_logits_v2(app, expected, IDS, MASK, num_tokens_to_check=4)
    assert len(results[0]) == 4


def test_the_whole_sequence_by_default(app: NeuronBaseForCausalLM) -> None:
    assert len(generate_expected_logits(app, IDS, MASK)) == 32 - 5
    assert len(generate_expected_logits(app, IDS, MASK, num_tokens=100)) == 32 - 5


def test_expected_tokens_may_be_given(app: NeuronBaseForCausalLM) -> None:
    reference: Any = load_reference(app)
    wanted = reference.generate(IDS, attention_mask=MASK, max_new_tokens=4, do_sample=False)
    check_accuracy(app, expected_token_ids=wanted, inputs=INPUTS, num_tokens_to_check=4)
    wanted[1, -1] += 1
    with pytest.raises(LogitMatchingValidationError, match="generated token 3 of row 1"):
        check_accuracy(app, expected_token_ids=wanted, inputs=INPUTS, num_tokens_to_check=4)


def test_bad_requests_are_refused(app: NeuronBaseForCausalLM) -> None:
    with pytest.raises(UnsupportedError, match="do_sample"):
        check_accuracy(app, inputs=INPUTS, do_sample=True)
    with pytest.raises(ConfigError, match="give a tokenizer, or inputs"):
        check_accuracy(app)
    with pytest.raises(ShapeError, match="for 2 rows"):
        check_accuracy_logits_v2(app, torch.zeros(3, 1, 97), IDS, MASK)


SCORES = torch.zeros(3, 1, 5)
SCORES[:, 0, 1], SCORES[1, 0, 2], SCORES[1, 0, 3] = 4.0, 3.9995, 3.99


@pytest.mark.parametrize(
    ("actual", "passed", "ties"),
    [
        ([1, 1, 1], [True, True, True], 0),
        ([1, 2, 4], [True, True], 1),  # what follows a tie is another text
        ([1, 3, 1], [True, False], 0),
        ([1, 1], [True, True, False], 0),
        ([0, 1, 1], [False], 0),
    ],
)
def test_a_text_may_part_at_a_tie(actual: list[int], passed: list[bool], ties: int) -> None:
    expected = torch.tensor([[1, 1, 1]])
    (results,) = match_tokens(torch.tensor([actual]), expected, SCORES)
    assert [result["passed"] for result in results] == passed
    assert sum(result["is_tie"] for result in results) == ties
    (strict,) = match_tokens(torch.tensor([actual]), expected)
    assert all(result["passed"] for result in strict) == (actual == [1, 1, 1])

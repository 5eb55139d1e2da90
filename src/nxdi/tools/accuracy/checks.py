"""Tokens and logits of a model against transformers, under NxDI's names."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from nxdi.errors import ConfigError, ShapeError, UnsupportedError
from nxdi.generation.hf_adapter import HuggingFaceGenerationAdapter
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.tools.accuracy.logits import (
    DIVERGENCE_DIFFERENCE_TOL,
    Results,
    TokenResult,
    TolMap,
    check_results,
    match_logits,
)
from nxdi.tools.accuracy.reference import Prompts, forced_steps, greedy, load_reference

_NOTHING = -1  # in place of a token, where a text ended early
TEST_PROMPT = "The three things that matter most in a proof are"


def check_accuracy(  # noqa: PLR0913  NxDI's keywords
    neuron_model: NeuronBaseForCausalLM,
    tokenizer: PreTrainedTokenizerBase | None = None,
    generation_config: GenerationConfig | None = None,
    expected_token_ids: Tensor | None = None,
    num_tokens_to_check: int | None = None,
    do_sample: bool = False,
    draft_model: NeuronBaseForCausalLM | None = None,
    prompt: str | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    reference: nn.Module | None = None,
) -> Results:
    """Compare what `generate` writes, greedily, with transformers' `generate`.

    inputs: input_ids and attention_mask [B, S]; or `prompt`, in every row of the batch.
    expected_token_ids: prompt and answer [B, S + T], instead of what transformers writes.
    draft_model: a draft model or EAGLE head that proposes tokens, loaded.
    reference: transformers' model, if it is loaded already.
    Returns: the comparison of each token, up to a tie: there the texts may part for good reason.
    Raises: LogitMatchingValidationError for another token where there is no tie;
    UnsupportedError for do_sample=True.
    """
    if do_sample:
        raise UnsupportedError(
            "check_accuracy(do_sample=True): drawn tokens cannot be compared; leave do_sample out"
        )
    ids, mask = _prompts(neuron_model, tokenizer, prompt, inputs).batch(_pad_token(tokenizer))
    room = neuron_model.neuron_config.seq_len - ids.shape[1]
    num_tokens = room if num_tokens_to_check is None else min(num_tokens_to_check, room)
    generate = partial(
        _generate, input_ids=ids, attention_mask=mask, config=generation_config, count=num_tokens
    )
    scores = None
    if expected_token_ids is None:
        reference = load_reference(neuron_model) if reference is None else reference
        made = generate(reference, output_scores=True)
        expected_token_ids, scores = made.sequences, torch.stack(made.scores)
    adapter = HuggingFaceGenerationAdapter(neuron_model)
    written = generate(adapter, output_scores=False, assistant_model=draft_model)
    width = ids.shape[1]
    results = match_tokens(written[:, width:], expected_token_ids[:, width:], scores)
    check_results(results)
    return results


def check_accuracy_logits_v2(
    neuron_model: NeuronBaseForCausalLM,
    expected_logits: Tensor,
    inputs_input_ids: Tensor,
    inputs_attention_mask: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    divergence_difference_tol: float = DIVERGENCE_DIFFERENCE_TOL,
    tol_map: TolMap | None = None,
    num_tokens_to_check: int | None = None,
) -> Results:
    """Compare logits with expected ones [T, B, V], token by token.

    Every step is given the tokens that the reference chose before it, so all positions are
    compared, also those after tokens that tie. A decode step writes the reference's token to the
    cache where NxDI generates again from there: no prompt grows beyond max_context_length.
    generation_config: taken because NxDI asks for it; logits are compared before anything in it
    applies.
    Raises: LogitMatchingValidationError at the first position outside the tolerances.
    """
    del generation_config
    expected = expected_logits[:num_tokens_to_check]
    prompts = Prompts.of(inputs_input_ids, inputs_attention_mask)
    if expected.dim() != 3 or expected.shape[1] != len(prompts.rows) or not len(expected):
        raise ShapeError(
            f"expected_logits of shape {tuple(expected.shape)} must be [tokens, rows, vocabulary] "
            f"for {len(prompts.rows)} rows; generate_expected_logits makes them so"
        )
    steps = forced_steps(neuron_model, prompts, expected.argmax(dim=-1))
    results = match_logits(torch.stack(list(steps)), expected, divergence_difference_tol, tol_map)
    check_results(results)
    return results


def generate_expected_logits(
    neuron_model: NeuronBaseForCausalLM,
    input_ids: Tensor,
    inputs_attention_mask: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    num_tokens: int | None = None,
) -> Tensor:
    """transformers' float32 logits [T, B, V] of its greedy continuation, before any processor.

    num_tokens: default: as many as fit the model's seq_len. generation_config: as above.
    """
    del generation_config
    prompts = Prompts.of(input_ids, inputs_attention_mask)
    room = neuron_model.neuron_config.seq_len - max(prompts.lengths)
    num_tokens = room if num_tokens is None else min(num_tokens, room)
    return greedy(load_reference(neuron_model), prompts, num_tokens)[1]


def match_tokens(actual: Tensor, expected: Tensor, scores: Tensor | None = None) -> Results:
    """Compare new tokens [B, T]; scores [T, B, V]: what the reference chose from, to tell ties.

    A row ends at a tie, and at its first difference.
    """
    return [
        _match_row(actual[row], expected[row], None if scores is None else scores[:, row])
        for row in range(len(expected))
    ]


def _match_row(actual: Tensor, expected: Tensor, scores: Tensor | None) -> list[TokenResult]:
    results: list[TokenResult] = []
    for index, wanted in enumerate(expected.tolist()):
        token = int(actual[index]) if index < len(actual) else _NOTHING
        difference = 0.0 if token == wanted else torch.inf
        if token not in (wanted, _NOTHING) and scores is not None:
            difference = float(scores[index, wanted] - scores[index, token])
        results.append(
            {
                "passed": difference <= DIVERGENCE_DIFFERENCE_TOL,
                "expected_token": wanted,
                "actual_token": token,
                "is_tie": token != wanted and difference <= DIVERGENCE_DIFFERENCE_TOL,
                "difference": difference,
                "top_k": {},
            }
        )
        if token != wanted:
            break
    return results


def _prompts(
    model: NeuronBaseForCausalLM,
    tokenizer: PreTrainedTokenizerBase | None,
    prompt: str | None,
    inputs: Mapping[str, Tensor] | None,
) -> Prompts:
    if inputs is not None:
        return Prompts.of(inputs["input_ids"], inputs.get("attention_mask"))
    if tokenizer is None:
        raise ConfigError("give a tokenizer, or inputs with input_ids and attention_mask")
    tokens: Any = tokenizer(prompt or TEST_PROMPT, return_tensors="pt")["input_ids"]
    return Prompts((tokens[0],) * model.neuron_config.batch_size)


def _pad_token(tokenizer: PreTrainedTokenizerBase | None) -> int:
    return getattr(tokenizer, "pad_token_id", None) or 0


def _generate(
    model: Any,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    config: GenerationConfig | None,
    count: int,
    output_scores: bool,
    assistant_model: NeuronBaseForCausalLM | None = None,
) -> Any:
    """One greedy text of at most `count` new tokens."""
    options: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": count,
        "return_dict_in_generate": output_scores,
        "output_scores": output_scores,
    }
    if config is not None:  # transformers wants a config or keywords, not both
        whole: Any = copy.deepcopy(config)
        whole.update(**options)
        options = {"generation_config": whole}
    with torch.no_grad():
        return model.generate(
            input_ids, attention_mask=attention_mask, assistant_model=assistant_model, **options
        )

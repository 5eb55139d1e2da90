"""The two ways tokens are chosen: from a seed and a position, or by transformers' processors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from nxdi.config import NeuronConfig
from nxdi.generation.speculation.proposals import Continued, Proposal
from nxdi.generation.token_choice import make_token_choice
from nxdi.models.causal_lm import CausalLMOutput
from nxdi.modules.speculation.acceptance import (
    Accepted,
    accept_by_rejection,
    accept_matching,
    certain,
)


@dataclass(frozen=True)
class _With:
    """A sequence with some more tokens."""

    tokens: list[int]
    seed: int
    sampling_params: tuple[float, float, float]


class SeededRule:
    """Each token follows from the seed of its sequence and its position, as without speculation.

    The target chooses after every proposed token; those that it would have chosen are kept. A draft
    model samples with the same random numbers, so that it chooses alike where it thinks alike.
    """

    def __init__(self, target: NeuronConfig, draft: NeuronConfig | None) -> None:
        self._choice = make_token_choice(target)
        self._draft_choice = make_token_choice(target if draft is None else draft)

    def inputs(self, sequences: Sequence[Continued]) -> dict[str, Any]:
        return self._choice.inputs(sequences)

    def draft_inputs(self, sequences: Sequence[Continued]) -> dict[str, Any]:
        return self._draft_choice.inputs(sequences)

    def propose(
        self, sequence: Continued, proposed: Sequence[int], output: CausalLMOutput, row: int
    ) -> tuple[int, Tensor | None]:
        tokens = [*sequence.tokens, *proposed]
        whole = _With(tokens, sequence.seed, sequence.sampling_params)
        return self._draft_choice.token(whole, output, row), None

    def accept(
        self, sequence: Continued, proposal: Proposal, output: CausalLMOutput, row: int
    ) -> list[int]:
        num_choices = len(proposal.tokens) + 1
        chosen = [self._choice.token(sequence, output, row, ahead) for ahead in range(num_choices)]
        return _tokens(accept_matching(_row(proposal.tokens), _row(chosen)))


class Shown(Continued, Protocol):
    """A sequence of generate(), with the padding of its prompt."""

    def shown(self, more: Sequence[int]) -> Tensor:
        """input_ids [1, T] as transformers' processors are to see them, `more` tokens on."""
        ...


class ProcessedRule:
    """transformers' logits processors, then the likeliest token, or draws from torch's generator.

    What a draft model draws is kept or made up for by rejection sampling.
    """

    def __init__(self, processors: LogitsProcessorList, do_sample: bool) -> None:
        self._processors: Any = processors  # its annotations name tensor subclasses
        self._do_sample = do_sample

    def inputs(self, sequences: Sequence[Continued]) -> dict[str, Any]:
        return {}

    def draft_inputs(self, sequences: Sequence[Continued]) -> dict[str, Any]:
        return {}

    def propose(
        self, sequence: Shown, proposed: Sequence[int], output: CausalLMOutput, row: int
    ) -> tuple[int, Tensor | None]:
        if output.logits is None:
            assert output.tokens is not None
            return int(output.tokens[row]), None
        scores = self._scores(sequence, proposed, output.logits[row, -1])
        if not self._do_sample:
            return int(scores.argmax()), None
        draft = torch.softmax(scores, dim=-1)
        return int(torch.multinomial(draft, num_samples=1)), draft

    def accept(
        self, sequence: Shown, proposal: Proposal, output: CausalLMOutput, row: int
    ) -> list[int]:
        assert output.logits is not None
        tokens = proposal.tokens
        scores = torch.stack(
            [
                self._scores(sequence, tokens[:ahead], output.logits[row, ahead])
                for ahead in range(len(tokens) + 1)
            ]
        ).unsqueeze(0)
        proposed = _row(tokens)
        if not self._do_sample:
            return _tokens(accept_matching(proposed, scores.argmax(dim=-1)))
        target = torch.softmax(scores, dim=-1)
        if proposal.draft is None:
            draft = certain(proposed, target.shape[-1])
        else:
            draft = proposal.draft.unsqueeze(0)
        keep, draw = torch.rand(1, len(tokens)), torch.rand(1)
        return _tokens(accept_by_rejection(proposed, target, draft, keep, draw))

    def _scores(self, sequence: Shown, more: Sequence[int], logits: Tensor) -> Tensor:
        """Processed scores [vocab_size] of the token after `more`."""
        scores: Tensor = self._processors(sequence.shown(more), logits.float().unsqueeze(0))
        return scores.squeeze(0)


def _row(tokens: Sequence[int]) -> Tensor:
    return torch.tensor([tokens], dtype=torch.int32)


def _tokens(accepted: Accepted) -> list[int]:
    tokens: list[int] = accepted.tokens[0, : int(accepted.num_tokens)].tolist()
    return tokens

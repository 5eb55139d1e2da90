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
from nxdi.modules.speculation.acceptance import accept_by_rejection
from nxdi.modules.speculation.tree import Path, follow


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
        self,
        sequence: Continued,
        proposal: Proposal,
        output: CausalLMOutput,
        row: int,
        first: int = 0,
    ) -> Path:
        def choose(path: list[int]) -> int:
            return self._choice.token(sequence, output, row, first + path[-1], len(path) - 1)

        return follow(proposal.tokens, proposal.parents, choose)


class Shown(Continued, Protocol):
    """A sequence of generate(), with the padding of its prompt."""

    def shown(self, more: Sequence[int]) -> Tensor:
        """input_ids [1, T] as transformers' processors are to see them, `more` tokens on."""
        ...


class ProcessedRule:
    """transformers' logits processors, then the likeliest token, or draws from torch's generator.

    What a draft model draws is kept or made up for by rejection sampling; proposals that are
    certain are kept if the target draws the same.
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
        self, sequence: Shown, proposal: Proposal, output: CausalLMOutput, row: int, first: int = 0
    ) -> Path:
        assert output.logits is not None
        logits, tokens = output.logits[row, first:], proposal.tokens
        if proposal.draft is not None:
            return self._accept_drawn(sequence, tokens, proposal.draft, logits)

        def choose(path: list[int]) -> int:
            more = [tokens[node - 1] for node in path[1:]]
            return self._choose(self._scores(sequence, more, logits[path[-1]]))

        return follow(tokens, proposal.parents, choose)

    def _accept_drawn(
        self, sequence: Shown, tokens: Sequence[int], draft: Tensor, logits: Tensor
    ) -> Path:
        """Of tokens in line that were drawn from `draft`. logits [K + 1, vocab_size]."""
        scores = [
            self._scores(sequence, tokens[:ahead], logits[ahead])
            for ahead in range(len(tokens) + 1)
        ]
        target = torch.softmax(torch.stack(scores), dim=-1).unsqueeze(0)
        keep, draw = torch.rand(1, len(tokens)), torch.rand(1)
        proposed = torch.tensor([tokens], dtype=torch.int32)
        kept = accept_by_rejection(proposed, target, draft.unsqueeze(0), keep, draw)
        count = int(kept.num_tokens)
        return Path(list(range(count)), kept.tokens[0, :count].tolist())

    def _choose(self, scores: Tensor) -> int:
        if not self._do_sample:
            return int(scores.argmax())
        return int(torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1))

    def _scores(self, sequence: Shown, more: Sequence[int], logits: Tensor) -> Tensor:
        """Processed scores [vocab_size] of the token after `more`."""
        scores: Tensor = self._processors(sequence.shown(more), logits.float().unsqueeze(0))
        return scores.squeeze(0)

"""One step with speculation: propose, verify, keep what is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from nxdi.generation.rows import Row, row_inputs
from nxdi.generation.speculation.proposals import Continued, Proposer, Rule, Seen, Wanted
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.types import Phase


@dataclass(frozen=True)
class Going:
    """A sequence whose last token is to be computed; table: where the cache holds it, as `Row`'s.

    most: proposed tokens that it has room for.
    """

    sequence: Continued
    table: Sequence[int]
    most: int


@dataclass(frozen=True)
class Brought:
    """What a step brings a sequence: one or more tokens, and the logits of each [n, vocab_size]."""

    tokens: list[int]
    logits: Tensor | None


@dataclass
class Counts:
    """How proposals fared, by their place in a proposal (from 0).

    num_steps: of single rows. num_tokens: that they brought.
    """

    num_steps: int = 0
    num_tokens: int = 0
    proposed: Counter[int] = field(default_factory=Counter)
    kept: Counter[int] = field(default_factory=Counter)

    def add(self, num_proposed: int, num_kept: int) -> None:
        self.num_steps += 1
        self.num_tokens += num_kept + 1
        self.proposed.update(range(num_proposed))
        self.kept.update(range(num_kept))

    @property
    def tokens_per_step(self) -> float:
        """1 without speculation."""
        return self.num_tokens / self.num_steps if self.num_steps else 1.0

    @property
    def acceptance(self) -> float:
        """Which part of all proposed tokens was kept."""
        return self.kept.total() / self.proposed.total() if self.proposed else 0.0


class Speculation:
    """A model, and who proposes tokens to it.

    Raises: ConfigError if the model has no verify graphs, or the two do not fit together.
    """

    def __init__(self, model: NeuronBaseForCausalLM, proposer: Proposer) -> None:
        self.num_verified = model.neuron_config.speculation_length
        model.check_verifies()
        proposer.check(model)
        self.model, self.proposer = model, proposer
        self.counts = Counts()
        self._longest = model.plan.max_length(Phase.DECODE)

    def most(self, num_tokens: int, num_new: int) -> int:
        """Proposals that a sequence of `num_tokens` has room for, if it wants `num_new` more.

        At the end of its room a sequence goes on by single tokens. LongRoPE's switch is not passed.
        """
        switch = self.model.prefill_again_at
        stop = self._longest if switch is None or num_tokens > switch else switch
        return max(0, min(self.num_verified - 1, stop - num_tokens, num_new - 1))

    def step(self, rows: Sequence[Going], rule: Rule) -> list[Brought]:
        """The next tokens of each sequence, one or more. The cache is filled up to the last."""
        sequences = [row.sequence for row in rows]
        proposals = self.proposer.propose([Wanted(row.sequence, row.most) for row in rows], rule)
        new = [
            Row(
                [row.sequence.tokens[-1], *proposal.tokens], len(row.sequence.tokens) - 1, row.table
            )
            for row, proposal in zip(rows, proposals, strict=True)
        ]
        call = self.model.verify if any(proposal.tokens for proposal in proposals) else self.model
        inputs = row_inputs(self.model.neuron_config, new)
        output = call(**{**inputs, **rule.inputs(sequences)})
        brought, seen = [], []
        for index, (sequence, proposal) in enumerate(zip(sequences, proposals, strict=True)):
            tokens = rule.accept(sequence, proposal, output, index)
            self.counts.add(len(proposal.tokens), len(tokens) - 1)
            logits = None if output.logits is None else output.logits[index, : len(tokens)]
            brought.append(Brought(tokens, logits))
            kept = [sequence.tokens[-1], *tokens[:-1]]
            seen.append(Seen(sequence, kept, len(sequence.tokens) - 1, output, index))
        self.proposer.watch(seen)
        return brought

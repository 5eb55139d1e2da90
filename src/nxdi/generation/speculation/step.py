"""One step with speculation: propose, verify, keep what is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nxdi.generation.rows import Row, row_inputs
from nxdi.generation.speculation.proposals import Continued, Proposal, Proposer, Rule, Seen, Wanted
from nxdi.models.causal_lm import CausalLMOutput, NeuronBaseForCausalLM
from nxdi.modules.speculation.tree import after_chain
from nxdi.types import Phase


@dataclass(frozen=True)
class Going:
    """A sequence whose last token is to be computed; table: where the cache holds it, as `Row`'s.

    num_held: how many of its tokens, the first ones, the cache holds at their own positions. most:
    proposed tokens that it has room for. longest: how many of them may follow each other.
    """

    sequence: Continued
    table: Sequence[int]
    num_held: int
    most: int
    longest: int

    @property
    def num_astray(self) -> int:
        """Tokens before the last one that are to be computed again, at their own positions."""
        return len(self.sequence.tokens) - 1 - self.num_held


@dataclass(frozen=True)
class Brought:
    """What a step brings a sequence: one or more tokens, and the logits of each [n, vocab_size].

    num_held: tokens of the sequence that the cache then holds at their own positions.
    """

    tokens: list[int]
    logits: Tensor | None
    num_held: int


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
        config = model.neuron_config
        self.num_verified = config.num_verified
        # Proposals for one place: others than the first are in the branches of a tree.
        self._breadth = config.num_verified if config.verifies_trees else 1
        model.check_verifies()
        proposer.check(model)
        self.model, self.proposer = model, proposer
        self.counts = Counts()
        self._longest = model.plan.max_length(Phase.DECODE)

    def most(self, num_tokens: int, num_held: int, num_new: int) -> int:
        """Proposals that a sequence of `num_tokens` has room for, if it wants `num_new` more.

        num_held: as `Going`'s. At the end of its room a sequence goes on by single tokens.
        LongRoPE's switch is not passed.
        """
        switch = self.model.prefill_again_at
        stop = self._longest if switch is None or num_tokens > switch else switch
        room = min(self.num_verified - (num_tokens - num_held), stop - num_tokens)
        return max(0, min(room, (num_new - 1) * self._breadth))

    def step(self, rows: Sequence[Going], rule: Rule) -> list[Brought]:
        """The next tokens of each sequence, one or more.

        The cache then holds all tokens but the last, unless a path off the first chain of a tree
        was kept: its tokens lie elsewhere, and the next step computes them again before all else.
        """
        wanted = [Wanted(row.sequence, min(row.most, row.longest), row.most) for row in rows]
        proposals = [
            proposal.within(row.most, row.longest)
            for row, proposal in zip(rows, self.proposer.propose(wanted, rule), strict=True)
        ]
        output = self._run(rows, proposals, rule)
        brought, seen = [], []
        for index, (row, proposal) in enumerate(zip(rows, proposals, strict=True)):
            path = rule.accept(row.sequence, proposal, output, index, row.num_astray)
            self.counts.add(proposal.depth, len(path.tokens) - 1)
            columns = [row.num_astray + node for node in path.nodes]
            logits = None if output.logits is None else output.logits[index, columns]
            num_held = len(row.sequence.tokens) - 1 + path.num_in_line
            brought.append(Brought(path.tokens, logits, num_held))
            kept = [row.sequence.tokens[-1], *path.tokens[:-1]]
            start = len(row.sequence.tokens) - 1
            seen.append(Seen(row.sequence, kept, start, output, index, columns))
        self.proposer.watch(seen)
        return brought

    def _run(
        self, rows: Sequence[Going], proposals: Sequence[Proposal], rule: Rule
    ) -> CausalLMOutput:
        """The target's results; of a row first those of the tokens that are computed again."""
        new = [
            Row([*row.sequence.tokens[row.num_held :], *proposal.tokens], row.num_held, row.table)
            for row, proposal in zip(rows, proposals, strict=True)
        ]
        inputs: dict[str, Any] = row_inputs(self.model.neuron_config, new)
        inputs |= rule.inputs([row.sequence for row in rows])
        if max(len(row.tokens) for row in new) == 1:
            return self.model(**inputs)
        parents = [
            after_chain(row.num_astray, proposal.parents)
            for row, proposal in zip(rows, proposals, strict=True)
        ]
        return self.model.verify(**inputs, parents=parents)

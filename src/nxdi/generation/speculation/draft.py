"""A smaller model that proposes what it would generate."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from nxdi.generation.rows import Row, row_inputs, row_tables
from nxdi.generation.speculation.cache_rows import CacheRows
from nxdi.generation.speculation.compatible import check_compatible
from nxdi.generation.speculation.proposals import Continued, Proposal, Rule, Seen, Wanted
from nxdi.generation.work import Work, batches
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.types import Phase

# One token that the last proposal ended with, and one that the target has chosen.
_USUALLY_MISSING = 2


@dataclass
class _CacheRow:
    """A row of the draft model's cache, and the tokens it holds."""

    index: int
    tokens: list[int] = field(default_factory=list)


@dataclass(eq=False)
class _Draft:
    """A sequence while tokens are proposed for it: `tokens` are its own, then the proposed ones."""

    sequence: Continued
    most: int
    held: _CacheRow
    tokens: list[int]
    drawn_from: list[Tensor] = field(default_factory=list)

    @property
    def proposed(self) -> list[int]:
        return self.tokens[len(self.sequence.tokens) :]

    @property
    def proposal(self) -> Proposal:
        return Proposal.drawn(self.proposed, self.drawn_from)


class DraftModel:
    """A compiled and loaded model with the target's vocabulary, and a cache of its own.

    Each sequence has a row of its cache. What the target has rejected there is replaced, what is
    missing is computed: a sequence may change in any way between two proposals.
    """

    def __init__(self, draft: NeuronBaseForCausalLM) -> None:
        self.draft = draft
        self._rows = CacheRows(draft.neuron_config.tkg_batch_size, _CacheRow)
        self._longest = draft.plan.max_length(Phase.DECODE)
        self._tables = row_tables(draft.neuron_config, draft.neuron_config.tkg_batch_size)

    def check(self, target: NeuronBaseForCausalLM) -> None:
        """Raises: ConfigError unless the draft model has the target's tokens, and as many rows."""
        check_compatible(target, self.draft)

    def watch(self, seen: Sequence[Seen]) -> None:
        """The draft model computes what it needs by itself."""

    def propose(self, rows: Sequence[Wanted], rule: Rule) -> list[Proposal]:
        in_use = {row.sequence.id for row in rows}
        drafts = [
            _Draft(
                row.sequence,
                min(row.most, self._room(len(row.sequence.tokens))),
                self._row_of(row.sequence, in_use),
                list(row.sequence.tokens),
            )
            for row in rows
        ]
        while waiting := [draft for draft in drafts if len(draft.proposed) < draft.most]:
            works = [self._next(draft) for draft in waiting]
            for calls in batches(works, self.draft.plan):
                self._run(calls, rule)
        return [draft.proposal for draft in drafts]

    def _room(self, num_tokens: int) -> int:
        """How many tokens it can propose after so many; none that LongRoPE would turn otherwise."""
        switch = self.draft.prefill_again_at
        last = num_tokens - 1  # the position of the sequence's last token
        stop = switch if switch is not None and last < switch else self._longest
        return max(stop - last, 0)

    def _row_of(self, sequence: Continued, in_use: set[Hashable]) -> _CacheRow:
        """The cache row of a sequence, with the tokens there that are still the sequence's."""
        row = self._rows.of(sequence.id, in_use)
        row.tokens = row.tokens[: _num_common(row.tokens, sequence.tokens[:-1])]
        return row

    def _next(self, draft: _Draft) -> Work[_Draft]:
        """The next tokens to compute: a whole prompt, or one that the cache row lacks."""
        held, tokens = draft.held, draft.tokens
        longest = self.draft.neuron_config.longest_prompt
        missing = len(tokens) - len(held.tokens)
        is_far_behind = missing > _USUALLY_MISSING + max(0, len(tokens) - longest)
        if is_far_behind or len(held.tokens) == self.draft.prefill_again_at:
            held.tokens = []
        start = len(held.tokens)
        return Work(draft, start, start + 1 if start else min(len(tokens), longest))

    def _run(self, works: Sequence[Work[_Draft]], rule: Rule) -> None:
        config = self.draft.neuron_config
        tables = [self._tables[work.request.held.index] for work in works]
        rows = [
            Row(work.tokens, work.start, table) for work, table in zip(works, tables, strict=True)
        ]
        sequences = [work.request.sequence for work in works]
        output = self.draft(**row_inputs(config, rows), **rule.draft_inputs(sequences))
        for index, work in enumerate(works):
            draft, is_last = work.request, work.brings_token
            draft.held.tokens = draft.tokens[: work.stop]
            if is_last:
                token, drawn_from = rule.propose(draft.sequence, draft.proposed, output, index)
                draft.tokens.append(token)
                if drawn_from is not None:
                    draft.drawn_from.append(drawn_from)


def _num_common(held: Sequence[int], tokens: Sequence[int]) -> int:
    """How many leading tokens are the same."""
    pairs = zip(held, tokens, strict=False)
    return next(
        (place for place, (a, b) in enumerate(pairs) if a != b), min(len(held), len(tokens))
    )

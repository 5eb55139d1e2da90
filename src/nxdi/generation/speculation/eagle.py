"""An EAGLE head that proposes what it reads from its target's activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nxdi.errors import ConfigError
from nxdi.generation.rows import Row, row_inputs, row_tables
from nxdi.generation.speculation.cache_rows import CacheRows
from nxdi.generation.speculation.compatible import check_compatible
from nxdi.generation.speculation.proposals import Proposal, Rule, Seen, Wanted
from nxdi.graph.plan import FEATURES
from nxdi.models.causal_lm import CausalLMOutput, NeuronBaseForCausalLM
from nxdi.models.eagle.modeling_eagle import IS_OWN, NeuronEagleForCausalLM
from nxdi.types import Phase


@dataclass
class _Followed:
    """What the head knows of a sequence, and which row of its cache that is in.

    first: position of the first token whose features are known. tokens: those whose features are
    known. held: what followed the first of them, for as many as the cache holds pairs. waiting
    [n, F]: the features of the others.
    """

    index: int
    first: int = 0
    tokens: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    waiting: list[Tensor] = field(default_factory=list)

    def add(self, start: int, tokens: Sequence[int], features: Tensor) -> None:
        """Know features [n, F] of tokens from position `start` on; what was known there is gone."""
        known = start - self.first
        if not 0 < known <= len(self.tokens):  # begins anew, or with a gap
            self.first, known = start, 0
        unheld = max(known - len(self.held), 0)
        self.tokens, self.held = self.tokens[:known], self.held[:known]
        self.waiting = [torch.cat(self.waiting)[:unheld]] if unheld else []
        self.waiting.append(features)
        self.tokens.extend(tokens)

    def pairs(self, tokens: Sequence[int]) -> tuple[list[int], Tensor]:
        """What follows each of the tokens that wait, and their features, for `tokens` of it all."""
        start = self.first + len(self.held) + 1
        return list(tokens[start:]), torch.cat(self.waiting)

    def keep_last(self, num_tokens: int) -> None:
        """Begin anew with the last tokens only."""
        self.first += len(self.tokens) - num_tokens
        self.tokens = self.tokens[-num_tokens:]
        self.waiting = [torch.cat(self.waiting)[-num_tokens:]]


@dataclass(eq=False)
class _Draft:
    """A sequence while tokens are proposed for it; features: the head's own after the last one."""

    wanted: Wanted
    most: int
    followed: _Followed
    proposed: list[int] = field(default_factory=list)
    drawn_from: list[Tensor] = field(default_factory=list)
    features: Tensor | None = None

    @property
    def proposal(self) -> Proposal:
        return Proposal(self.proposed, torch.stack(self.drawn_from) if self.drawn_from else None)


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a draft, to be computed from place `start` on: ids [n], features [n, F]."""

    draft: _Draft
    start: int
    ids: Sequence[int]
    features: Tensor
    is_own: bool = False


class EagleHead:
    """A compiled and loaded head, made for the target; the target returns its features.

    Each sequence has a row of the head's cache, with one pair per token. It follows a sequence from
    the first token on that it has seen the target compute: where a prefix was found in a cache, it
    knows nothing of that. Source: arXiv:2401.15077, arXiv:2503.01840.
    """

    def __init__(self, head: NeuronEagleForCausalLM) -> None:
        self.draft = head
        config = head.neuron_config
        self._rows = CacheRows(config.tkg_batch_size, _Followed)
        self._tables = row_tables(config, config.tkg_batch_size)
        self._longest = head.plan.max_length(Phase.DECODE)
        self._size = head.config.feature_size

    def check(self, target: NeuronBaseForCausalLM) -> None:
        """Raises: ConfigError unless the head was made for such a target, and compiled for it."""
        check_head(target, self.draft)

    def watch(self, seen: Sequence[Seen]) -> None:
        in_use = {item.sequence.id for item in seen}
        for item in seen:
            assert item.output.features is not None
            features = item.of_tokens(item.output.features)
            self._rows.of(item.sequence.id, in_use).add(item.start, item.tokens, features)

    def propose(self, rows: Sequence[Wanted], rule: Rule) -> list[Proposal]:
        drafts = [self._draft(row) for row in rows]
        going = [draft for draft in drafts if draft is not None]
        self._catch_up(going, rule)
        while going := [draft for draft in going if len(draft.proposed) < draft.most]:
            self._go_on(going, rule)
        return [Proposal() if draft is None else draft.proposal for draft in drafts]

    def _draft(self, row: Wanted) -> _Draft | None:
        """None if the head does not know all tokens but the last, or has no room."""
        tokens, followed = row.sequence.tokens, self._rows.find(row.sequence.id)
        if followed is None or tokens[followed.first : -1] != followed.tokens:
            return None
        longest = self.draft.neuron_config.longest_prompt
        if not followed.held and len(followed.tokens) > longest:
            followed.keep_last(longest)
        most = min(row.most, self._longest - len(followed.tokens) + 1)
        return _Draft(row, most, followed) if most > 0 else None

    def _catch_up(self, drafts: Sequence[_Draft], rule: Rule) -> None:
        """Compute the pairs that wait; each draft then has its first token."""
        fresh = [draft for draft in drafts if not draft.followed.held]
        self._bring(self.draft, [self._waiting(draft) for draft in fresh], rule)
        behind = [draft for draft in drafts if draft.followed.waiting]
        while behind:
            self._bring(self.draft.verify, [self._waiting(draft) for draft in behind], rule)
            behind = [draft for draft in behind if draft.followed.waiting]

    def _waiting(self, draft: _Draft) -> _Pairs:
        """The next pairs of the target's: all of a prompt, else what a verify graph takes."""
        followed = draft.followed
        ids, features = followed.pairs(draft.wanted.sequence.tokens)
        start = len(followed.held)
        most = self.draft.neuron_config.speculation_length if start else len(ids)
        followed.held.extend(ids[:most])
        followed.waiting = [features[most:]] if len(ids) > most else []
        return _Pairs(draft, start, ids[:most], features[:most])

    def _go_on(self, drafts: Sequence[_Draft], rule: Rule) -> None:
        """One token more for each, from the head's own features."""
        pairs = []
        for draft in drafts:
            assert draft.features is not None
            own = F.pad(draft.features, (0, self._size - len(draft.features)))
            start = len(draft.followed.held) + len(draft.proposed) - 1
            pairs.append(_Pairs(draft, start, draft.proposed[-1:], own.unsqueeze(0), is_own=True))
        self._bring(self.draft, pairs, rule)

    def _bring(
        self, call: Callable[..., CausalLMOutput], pairs: Sequence[_Pairs], rule: Rule
    ) -> None:
        """Compute pairs; a draft gets the token after its last one, if it is one."""
        if not pairs:
            return
        inputs = row_inputs(
            self.draft.neuron_config,
            [Row(item.ids, item.start, self._tables[item.draft.followed.index]) for item in pairs],
        )
        sequences = [item.draft.wanted.sequence for item in pairs]
        extras = self._extras(pairs, inputs["input_ids"].shape[1])
        output = call(**inputs, **rule.draft_inputs(sequences), extras=extras)
        for row, item in enumerate(pairs):
            draft = item.draft
            if draft.followed.waiting:
                continue
            last = _after(output, row, len(item.ids) - 1)
            assert last.features is not None
            token, drawn_from = rule.propose(draft.wanted.sequence, draft.proposed, last, 0)
            draft.features = last.features[0, 0]
            draft.proposed.append(token)
            if drawn_from is not None:
                draft.drawn_from.append(drawn_from)

    def _extras(self, pairs: Sequence[_Pairs], width: int) -> dict[str, Tensor]:
        features = torch.zeros(len(pairs), width, self._size)
        for row, item in enumerate(pairs):
            features[row, : len(item.ids)] = item.features
        extras = {FEATURES: features}
        if self.draft.neuron_config.is_eagle3:
            is_own = torch.tensor([[item.is_own] for item in pairs], dtype=torch.int32)
            extras[IS_OWN] = is_own.expand(-1, width)
        return extras


def _after(output: CausalLMOutput, row: int, place: int) -> CausalLMOutput:
    """The result after one pair of a row, of which some outputs have the last one's only."""

    def of(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        found = value[row : row + 1, place if value.shape[1] > 1 else 0]
        return found.unsqueeze(1)

    tokens = None if output.tokens is None else of(output.tokens.reshape(len(output.tokens), -1))
    return CausalLMOutput(of(output.logits), tokens, of(output.features))


def check_head(target: NeuronBaseForCausalLM, head: NeuronBaseForCausalLM) -> None:
    """Raises: ConfigError naming what keeps a head from reading this target."""
    check_compatible(target, head)
    config, own = target.neuron_config, head.neuron_config
    if not config.enable_eagle_speculation or config.is_eagle3 != own.is_eagle3:
        raise ConfigError(
            f"the head has is_eagle3={own.is_eagle3}, the target enable_eagle_speculation="
            f"{config.enable_eagle_speculation} and is_eagle3={config.is_eagle3}, so it does not "
            "return what the head reads; compile the target with enable_eagle_speculation=True and "
            "the head's is_eagle3"
        )
    num_layers = 3 if own.is_eagle3 else 1
    sizes = head.config.feature_size, num_layers * target.config.hidden_size
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the head reads {sizes[0]} features of a token, the target returns {sizes[1]}; take a "
            "head that was trained for this target"
        )
    if own.speculation_length < 2:
        raise ConfigError(
            f"the head has speculation_length={own.speculation_length}, so it cannot take several "
            "verified tokens at once; compile it with the target's speculation_length="
            f"{config.speculation_length}"
        )
    sampling = own.on_device_sampling_config
    if sampling is not None and (sampling.do_sample or sampling.dynamic):
        raise ConfigError(
            "the head samples in its graphs, by positions of its own; compile it without "
            "on_device_sampling_config"
        )

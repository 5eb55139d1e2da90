"""What an EAGLE head knows of a sequence, and one proposal while it is made: a chain or a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from nxdi.config.token_tree import DynamicShape, TreeShape
from nxdi.generation.speculation.proposals import Proposal, Rule, Wanted
from nxdi.models.causal_lm import CausalLMOutput
from nxdi.modules.speculation.growth import make_growth

_ROOT: tuple[int, ...] = ()  # the path to the sequence's last token


@dataclass(frozen=True)
class Pairs:
    """Pairs to compute from place `start` on: ids [n], and features, the target's for the first.

    features [m, F] are the target's, own those of the head [n - m, hidden_size]. parents: of the
    tree that the pairs are; None: each follows the one before.
    """

    start: int
    ids: Sequence[int]
    features: Tensor
    own: Sequence[Tensor] = ()
    parents: tuple[int, ...] | None = None


@dataclass
class Followed:
    """What the head knows of a sequence, and which row of its cache that is in.

    first: position of the first token whose features are known. tokens: those whose features are
    known. held: what followed the first of them, for as many as the cache holds pairs; newest [F]:
    the features of the last of these. waiting [n, F]: the features of the others.
    """

    index: int
    first: int = 0
    tokens: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    waiting: list[Tensor] = field(default_factory=list)
    newest: Tensor | None = None

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

    def take(self, tokens: Sequence[int], most: int) -> Pairs:
        """The next pairs that wait, up to `most`, of a sequence of `tokens`; then they are held."""
        start = len(self.held)
        ids, features = tokens[self.first + start + 1 :], torch.cat(self.waiting)
        self.held.extend(ids[:most])
        self.waiting = [features[most:]] if len(ids) > most else []
        pairs = Pairs(start, ids[:most], features[:most])
        self.newest = pairs.features[-1]
        return pairs

    def keep_last(self, num_tokens: int) -> None:
        """Begin anew with the last tokens only."""
        self.first += len(self.tokens) - num_tokens
        self.tokens = self.tokens[-num_tokens:]
        self.waiting = [torch.cat(self.waiting)[-num_tokens:]]


class Draft(Protocol):
    """A sequence while tokens are proposed for it."""

    wanted: Wanted
    followed: Followed

    def take(self, output: CausalLMOutput, row: int, pairs: Pairs, rule: Rule) -> None:
        """See what the head says after pairs, in row number `row` of its output."""
        ...

    def next(self, most: int) -> Pairs | None:
        """The pairs to compute next, up to `most` of a tree; None: the proposal is made."""
        ...

    @property
    def proposal(self) -> Proposal: ...


@dataclass(eq=False)
class ChainDraft:
    """Tokens one after the other; features: the head's own after the last one."""

    wanted: Wanted
    followed: Followed
    most: int
    proposed: list[int] = field(default_factory=list)
    drawn_from: list[Tensor] = field(default_factory=list)
    features: Tensor | None = None

    def take(self, output: CausalLMOutput, row: int, pairs: Pairs, rule: Rule) -> None:
        last = after(output, row, len(pairs.ids) - 1)
        assert last.features is not None
        token, drawn_from = rule.propose(self.wanted.sequence, self.proposed, last, 0)
        self.features = last.features[0, 0]
        self.proposed.append(token)
        if drawn_from is not None:
            self.drawn_from.append(drawn_from)

    def next(self, most: int) -> Pairs | None:
        if len(self.proposed) == self.most:
            return None
        assert self.features is not None
        start = len(self.followed.held) + len(self.proposed) - 1
        nothing = self.features.new_empty(0, 1)
        return Pairs(start, self.proposed[-1:], nothing, [self.features])

    @property
    def proposal(self) -> Proposal:
        return Proposal.drawn(self.proposed, self.drawn_from)


class TreeDraft:
    """A tree of likely tokens. Every depth computes the tree so far anew, behind the last pair.

    So the head needs no other graph than one that verifies trees, whatever the tree.
    """

    def __init__(
        self, wanted: Wanted, followed: Followed, room: int, shape: TreeShape | DynamicShape
    ) -> None:
        self.wanted, self.followed = wanted, followed
        self._room, self._num_candidates = room, shape.num_candidates
        self._growth = make_growth(shape)
        self._own: dict[tuple[int, ...], Tensor] = {}  # the head's features after each path

    def take(self, output: CausalLMOutput, row: int, pairs: Pairs, rule: Rule) -> None:
        assert output.logits is not None
        assert output.features is not None
        paths = self._paths()
        last = len(pairs.ids) - 1
        columns = [last] if paths == [_ROOT] else [1 + self._nodes(paths).index(p) for p in paths]
        for path, column in zip(paths, columns, strict=True):
            self._own[path] = output.features[row, column]
        is_per_pair = output.logits.shape[1] > 1
        logits = output.logits[row, columns if is_per_pair else [0]]
        found = logits.log_softmax(dim=-1).topk(self._num_candidates)
        self._growth.add(found.indices, found.values)

    def next(self, most: int) -> Pairs | None:
        nodes = self._nodes(self._paths())
        if not nodes or 1 + len(nodes) > min(most, self._room):
            return None
        held, newest = self.followed.held, self.followed.newest
        assert newest is not None
        places = {_ROOT: 0} | {path: place for place, path in enumerate(nodes, start=1)}
        return Pairs(
            len(held) - 1,
            [held[-1], *(path[-1] for path in nodes)],
            newest.unsqueeze(0),
            [self._own[path[:-1]] for path in nodes],
            (-1, *(places[path[:-1]] for path in nodes)),
        )

    @property
    def proposal(self) -> Proposal:
        tokens, parents = self._growth.grown(self.wanted.num_nodes)
        return Proposal(tokens, None, parents)

    def _paths(self) -> list[tuple[int, ...]]:
        """The tokens that lead to each node whose candidates are wanted."""
        return [tuple(self._growth.path(node)) for node in self._growth.wanted()]

    @staticmethod
    def _nodes(paths: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Every node on the paths but the root, parents first."""
        every = {path[:depth] for path in paths for depth in range(1, len(path) + 1)}
        return sorted(every, key=lambda path: (len(path), path))


def after(output: CausalLMOutput, row: int, place: int) -> CausalLMOutput:
    """The result after one pair of a row, of which some outputs have the last one's only."""

    def of(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        found = value[row : row + 1, place if value.shape[1] > 1 else 0]
        return found.unsqueeze(1)

    tokens = None if output.tokens is None else of(output.tokens.reshape(len(output.tokens), -1))
    return CausalLMOutput(of(output.logits), tokens, of(output.features))

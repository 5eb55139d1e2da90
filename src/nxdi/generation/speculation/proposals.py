"""What passes between those who propose tokens, those who judge them, and a model's step."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from nxdi.config.token_tree import depths_of
from nxdi.generation.token_choice import Sampled
from nxdi.models.causal_lm import CausalLMOutput, NeuronBaseForCausalLM
from nxdi.modules.speculation.tree import Path, chain


class Continued(Sampled, Protocol):
    """A sequence that grows. `id`: its own, as long as it runs."""

    @property
    def id(self) -> Hashable: ...


@dataclass(frozen=True)
class Proposal:
    """Tokens that may follow a sequence.

    draft: what each was drawn from [K, vocab_size]; None: they are certain, or their choice does
    not depend on chance that the target does not share.
    tree: the parents of the tree's nodes, of which node 0 is the sequence's last token and the
    others are `tokens` in order; the likeliest chain comes first. None: each follows the one
    before. The tokens of a tree are certain.
    """

    tokens: list[int] = field(default_factory=list)
    draft: Tensor | None = None
    tree: tuple[int, ...] | None = None

    @classmethod
    def drawn(cls, tokens: list[int], drawn_from: Sequence[Tensor]) -> Proposal:
        """Tokens in line, with what each was drawn from [vocab_size]; empty: they are certain."""
        return cls(tokens, torch.stack(list(drawn_from)) if drawn_from else None)

    @property
    def parents(self) -> tuple[int, ...]:
        """The parents of all nodes, -1 for node 0."""
        return chain(len(self.tokens) + 1) if self.tree is None else self.tree

    @property
    def depth(self) -> int:
        """How many of the tokens may be right at once."""
        return max(depths_of(self.parents))

    def within(self, num_nodes: int, depth: int) -> Proposal:
        """At most `num_nodes` of the tokens, the first ones, at most `depth` in line."""
        if len(self.tokens) <= num_nodes and self.depth <= depth:
            return self
        if self.tree is None:
            most = min(num_nodes, depth)
            draft = None if self.draft is None else self.draft[:most]
            return Proposal(self.tokens[:most], draft)
        depths = depths_of(self.tree)
        kept = [node for node, deep in enumerate(depths) if deep <= depth][: num_nodes + 1]
        places = {-1: -1} | {node: place for place, node in enumerate(kept)}
        tokens = [self.tokens[node - 1] for node in kept[1:]]
        return Proposal(tokens, None, tuple(places[self.tree[node]] for node in kept))


@dataclass(frozen=True)
class Wanted:
    """Up to `most` tokens in line are wanted for a sequence, in a tree up to `num_nodes`."""

    sequence: Continued
    most: int
    num_nodes: int = 0


@dataclass(frozen=True)
class Seen:
    """What the target has computed of a sequence: `tokens` that it keeps, from position `start` on.

    They are in row number `row` of `output`, in some of its columns; None: in the first ones.
    """

    sequence: Continued
    tokens: Sequence[int]
    start: int
    output: CausalLMOutput
    row: int
    columns: Sequence[int] | None = None

    def of_tokens(self, value: Tensor) -> Tensor:
        """An output that has every token's result [B, S, ...] -> that of these tokens [n, ...]."""
        columns = range(len(self.tokens)) if self.columns is None else self.columns
        return value[self.row, list(columns)]


class Rule(Protocol):
    """How tokens are chosen after those of a sequence, by a draft model and by the target.

    Legend: output: of a call that had the sequence in its row number `row`. A rule may ask more of
    its sequences than being `Continued`.
    """

    def inputs(self, sequences: Sequence[Continued]) -> dict[str, Any]:
        """What choosing adds to a call of the target."""
        ...

    def draft_inputs(self, sequences: Sequence[Continued]) -> dict[str, Any]:
        """What choosing adds to a call of the draft model."""
        ...

    def propose(
        self, sequence: Any, proposed: Sequence[int], output: CausalLMOutput, row: int
    ) -> tuple[int, Tensor | None]:
        """The draft model's token after the `proposed` ones, and what it was drawn from [V]."""
        ...

    def accept(
        self, sequence: Any, proposal: Proposal, output: CausalLMOutput, row: int, first: int = 0
    ) -> Path:
        """The proposed tokens that are kept, and one more; first: the column of node 0."""
        ...


class Proposer(Protocol):
    """Who proposes tokens."""

    @property
    def draft(self) -> NeuronBaseForCausalLM | None:
        """The model it runs, if it runs one."""
        ...

    def check(self, target: NeuronBaseForCausalLM) -> None:
        """Raises: ConfigError or WeightError if it cannot propose tokens to this model."""
        ...

    def watch(self, seen: Sequence[Seen]) -> None:
        """Look at what a call of the target has computed, prompts too."""
        ...

    def propose(self, rows: Sequence[Wanted], rule: Rule) -> list[Proposal]:
        """One proposal for each sequence, of no tokens where it has none."""
        ...

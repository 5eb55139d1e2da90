"""What passes between those who propose tokens, those who judge them, and a model's step."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from nxdi.generation.token_choice import Sampled
from nxdi.models.causal_lm import CausalLMOutput, NeuronBaseForCausalLM


class Continued(Sampled, Protocol):
    """A sequence that grows. `id`: its own, as long as it runs."""

    @property
    def id(self) -> Hashable: ...


@dataclass(frozen=True)
class Proposal:
    """Tokens that may follow a sequence.

    draft: what each was drawn from [K, vocab_size]; None: they are certain, or their choice does
    not depend on chance that the target does not share.
    """

    tokens: list[int] = field(default_factory=list)
    draft: Tensor | None = None


@dataclass(frozen=True)
class Wanted:
    """Up to `most` tokens are wanted for a sequence."""

    sequence: Continued
    most: int


@dataclass(frozen=True)
class Seen:
    """What the target has computed of a sequence: `tokens` that it keeps, from position `start` on.

    They are in row number `row` of `output`, the first ones there.
    """

    sequence: Continued
    tokens: Sequence[int]
    start: int
    output: CausalLMOutput
    row: int


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
        self, sequence: Any, proposal: Proposal, output: CausalLMOutput, row: int
    ) -> list[int]:
        """The proposed tokens that are kept, and one more."""
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

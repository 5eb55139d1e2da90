"""The work of one step: which tokens of which requests, and in which calls of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from nxdi.graph.plan import GraphPlan
from nxdi.types import Phase


class HasTokens(Protocol):
    """A row of tokens, of which the cache holds the first ones."""

    tokens: list[int]


RequestT = TypeVar("RequestT", bound=HasTokens)


@dataclass(frozen=True)
class Work(Generic[RequestT]):
    """The tokens of a request from `start` to `stop`, to be computed in one step."""

    request: RequestT
    start: int
    stop: int

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start

    @property
    def tokens(self) -> list[int]:
        return self.request.tokens[self.start : self.stop]

    @property
    def phase(self) -> Phase:
        return Phase.of(self.start, self.num_tokens)

    @property
    def brings_token(self) -> bool:
        """Whether the logits after it are those of a new token."""
        return self.stop == len(self.request.tokens)


def batches(works: Sequence[Work[RequestT]], plan: GraphPlan) -> Iterator[list[Work[RequestT]]]:
    """Rows of one phase, as many as its graphs take; those that wait for one token come first."""
    for phase in (Phase.DECODE, Phase.EXTEND, Phase.PREFILL):
        rows = [work for work in works if work.phase == phase]
        while rows:
            most = plan.max_batch(phase)
            yield rows[:most]
            del rows[:most]

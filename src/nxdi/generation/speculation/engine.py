"""Continuous batching with speculation: requests that decode take several tokens per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nxdi.generation.requests import Request
from nxdi.generation.scheduler import Scheduler
from nxdi.generation.speculation.fused import make_seeded_rule
from nxdi.generation.speculation.step import Going, Speculation
from nxdi.generation.steps import Call, Computed, Engine
from nxdi.generation.token_choice import TokenChoice
from nxdi.generation.work import Work
from nxdi.types import Phase


@dataclass(frozen=True)
class _Speculative(Call):
    """A call of rows that go on by a token or more."""

    rows: Sequence[Going]


class SpeculativeEngine(Engine):
    """Proposes and verifies tokens where the others of a step decode.

    A request gets the tokens that it would get without.
    """

    def __init__(self, speculation: Speculation, scheduler: Scheduler, choice: TokenChoice) -> None:
        super().__init__(speculation.model, scheduler, choice)
        self._speculation = speculation
        self._rule = make_seeded_rule(speculation)

    def call(self, works: Sequence[Work[Request]]) -> Call:
        goes_on = [work.phase is Phase.DECODE and work.brings_token for work in works]
        if not all(goes_on):
            return super().call(works)
        return _Speculative(works, {}, [self._going(work.request) for work in works])

    def run(self, call: Call) -> list[Computed]:
        if not isinstance(call, _Speculative):
            return super().run(call)
        brought = self._speculation.step(call.rows, self._rule)
        return [
            Computed(work, of_row.tokens, of_row.logits)
            for work, of_row in zip(call.works, brought, strict=True)
        ]

    def _going(self, request: Request) -> Going:
        """As many proposals as the cache has free blocks for, without taking anybody else's."""
        blocks, num_tokens = self.scheduler.blocks, len(request.tokens)
        most = self._speculation.most(num_tokens, request.max_len - num_tokens)
        while not blocks.grow(request.id, num_tokens + most):
            most -= 1
        return Going(request, blocks.table(request.id), most)

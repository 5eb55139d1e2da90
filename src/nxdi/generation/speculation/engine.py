"""Continuous batching with speculation: requests that decode take several tokens per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nxdi.generation.requests import Request
from nxdi.generation.scheduler import Scheduler
from nxdi.generation.speculation.fused import make_seeded_rule
from nxdi.generation.speculation.proposals import Seen
from nxdi.generation.speculation.step import Going, Speculation
from nxdi.generation.steps import Call, Computed, Engine
from nxdi.generation.token_choice import TokenChoice
from nxdi.generation.work import Work, batches
from nxdi.models.causal_lm import CausalLMOutput
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
        self._rule = make_seeded_rule(speculation.model, speculation.proposer)

    def plan(self) -> list[Call]:
        going: list[Work[Request]] = []
        others: list[Work[Request]] = []
        for work in self.scheduler.plan():
            goes_on = work.phase is Phase.DECODE and work.brings_token
            (going if goes_on else others).append(work)
        return [
            *map(self._speculative, batches(going, self.model.plan)),
            *map(self.call, batches(others, self.model.plan)),
        ]

    def run(self, call: Call) -> list[Computed]:
        if not isinstance(call, _Speculative):
            return super().run(call)
        brought = self._speculation.step(call.rows, self._rule)
        return [
            Computed(work, of_row.tokens, of_row.logits, of_row.num_held)
            for work, of_row in zip(call.works, brought, strict=True)
        ]

    def compute(self, call: Call) -> CausalLMOutput:
        output = super().compute(call)
        self._speculation.proposer.watch(
            [
                Seen(work.request, work.tokens, work.start, output, row)
                for row, work in enumerate(call.works)
            ]
        )
        return output

    def _speculative(self, works: Sequence[Work[Request]]) -> Call:
        return _Speculative(works, {}, [self._going(work.request) for work in works])

    def _going(self, request: Request) -> Going:
        """As many proposals as the cache has free blocks for, without taking anybody else's."""
        blocks, num_tokens = self.scheduler.blocks, len(request.tokens)
        num_new = request.max_len - num_tokens
        most = self._speculation.most(num_tokens, request.num_held, num_new)
        while not blocks.grow(request.id, num_tokens + most):
            most -= 1
        return Going(request, blocks.table(request.id), request.num_held, most, num_new - 1)

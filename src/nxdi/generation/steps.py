"""How the steps of a batcher follow each other: in turn, or with the host one step behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from nxdi.config import NeuronConfig
from nxdi.generation.ahead import Ahead, Pending
from nxdi.generation.requests import Request
from nxdi.generation.rows import Row, row_inputs
from nxdi.generation.scheduler import Scheduler
from nxdi.generation.token_choice import TokenChoice, logprobs_of
from nxdi.generation.work import Work, batches
from nxdi.models.causal_lm import CausalLMOutput, NeuronBaseForCausalLM


@dataclass(frozen=True)
class Call:
    """Rows of one phase, and what the model is called with."""

    works: Sequence[Work[Request]]
    inputs: dict[str, Any]


@dataclass(frozen=True)
class Computed:
    """What a call has computed of one request: its work is done, and may have brought tokens.

    logits [n, vocab_size]: what each was chosen from. num_held: tokens of the request that the
    cache now holds at their own positions.
    """

    work: Work[Request]
    tokens: list[int]
    logits: Tensor | None
    num_held: int

    @property
    def request(self) -> Request:
        return self.work.request

    def publish(self) -> None:
        """Hand out the tokens up to the last: text, logarithms, and whether it is the last."""
        num_top = self.request.options.logprobs
        for index, token in enumerate(self.tokens):
            logprobs = None
            if num_top is not None:
                assert self.logits is not None
                logprobs = logprobs_of(self.logits[index : index + 1], token, num_top)
            self.request.publish(token, logprobs)
            if self.request.finish_reason is not None:
                return


class Engine:
    """What every step consists of."""

    def __init__(
        self, model: NeuronBaseForCausalLM, scheduler: Scheduler, choice: TokenChoice
    ) -> None:
        self.model, self.scheduler, self.choice = model, scheduler, choice

    def plan(self) -> list[Call]:
        """The calls of the next step."""
        works = self.scheduler.plan()
        return [self.call(rows) for rows in batches(works, self.model.plan)]

    def call(self, works: Sequence[Work[Request]]) -> Call:
        """The call that does the work of rows of one phase."""
        table = self.scheduler.blocks.table
        rows = [Row(work.tokens, work.start, table(work.request.id)) for work in works]
        inputs = row_inputs(self.model.neuron_config, rows)
        return Call(works, {**inputs, **self.choice.inputs([work.request for work in works])})

    def run(self, call: Call) -> list[Computed]:
        """Call the model. Nothing that others see changes, in whatever thread it runs."""
        output = self.compute(call)
        logits = output.logits
        return [
            Computed(
                work,
                [self.choice.token(work.request, output, row)] if work.brings_token else [],
                None if logits is None else logits[row],
                work.stop,
            )
            for row, work in enumerate(call.works)
        ]

    def compute(self, call: Call) -> CausalLMOutput:
        """The model's outputs, one row per work."""
        return self.model(**call.inputs)

    def take(self, computed: Computed) -> None:
        """Count the work as done; its tokens are the request's. The last is not computed yet."""
        work, request, held = computed.work, computed.request, computed.request.num_held
        known = [*request.tokens[held:], *computed.tokens]
        self.scheduler.blocks.fill(request.id, known[: computed.num_held - held])
        request.num_held = computed.num_held
        request.num_computed = work.stop + len(computed.tokens[:-1])
        for token in computed.tokens:
            request.take(token)


class Steps(Protocol):
    """One way to run step after step."""

    def advance(self) -> None:
        """Run the model until every request that can has its next token.

        Raises: what the model raises; every request is as it was before the failed call.
        """
        ...


class StepsInTurn:
    """A step is planned when all is known of the one before.

    receive: lets requests in and out; called when no call runs.
    """

    def __init__(self, engine: Engine, receive: Callable[[], None]) -> None:
        self._engine, self._receive = engine, receive

    def advance(self) -> None:
        self._receive()
        for call in self._engine.plan():
            for computed in self._engine.run(call):
                self._engine.take(computed)
                computed.publish()
                if computed.request.finish_reason is not None:
                    self._engine.scheduler.remove(computed.request)


class StepsAhead:
    """A step starts, in another thread, as soon as the tokens of the one before are known.

    Text, stops and logarithms of a step are worked out while the next one runs. A request that
    turns out to have stopped is in it already: what that brings is dropped, and its blocks are
    free when the step has ended. Requests enter and leave between steps only.
    """

    def __init__(self, engine: Engine, receive: Callable[[], None]) -> None:
        self._engine, self._receive = engine, receive
        self._thread = Ahead()
        self._running: Pending[_Outcome] | None = None
        self._in_step: list[Request] = []
        self._unpublished: deque[Computed] = deque()
        self._stopped: list[Request] = []  # but not removed yet

    def advance(self) -> None:
        self._publish()  # what an error has left over
        if self._running is None:
            self._settle()
            self._start()
        error = self._finish()
        if error is not None:
            raise error
        self._start()
        self._publish()
        if all(request in self._stopped for request in self._in_step):
            self._finish()  # nobody waits for it, nor for its errors

    def _start(self) -> None:
        calls = self._engine.plan()
        self._in_step = [work.request for call in calls for work in call.works]
        if calls:
            self._running = self._thread.start(lambda: self._run(calls))

    def _run(self, calls: Sequence[Call]) -> _Outcome:
        outcome = _Outcome([])
        try:
            for call in calls:
                outcome.computed += self._engine.run(call)
        except Exception as error:  # raised in the thread that waits for the step
            outcome.error = error
        return outcome

    def _finish(self) -> Exception | None:
        """Wait for the step that runs, and take what it brought.

        Returns: the error that ended it, if one did.
        """
        outcome = _Outcome([]) if self._running is None else self._running.result()
        self._running, self._in_step = None, []
        self._settle()
        for computed in outcome.computed:
            if computed.request in self._engine.scheduler.running:
                self._engine.take(computed)
                self._unpublished.append(computed)
                if computed.request.is_full:
                    self._engine.scheduler.remove(computed.request)
        return outcome.error

    def _settle(self) -> None:
        """Let requests in and out, and free what those that have stopped still hold."""
        self._receive()
        while self._stopped:
            self._engine.scheduler.remove(self._stopped.pop())

    def _publish(self) -> None:
        while self._unpublished:
            computed = self._unpublished.popleft()
            computed.publish()
            request = computed.request
            if request.finish_reason is not None and not request.is_full:
                self._stopped.append(request)


@dataclass
class _Outcome:
    """What the calls of a step have computed, up to the one that failed."""

    computed: list[Computed]
    error: Exception | None = None


def make_steps(config: NeuronConfig, engine: Engine, receive: Callable[[], None]) -> Steps:
    """As `async_mode` says."""
    return (StepsAhead if config.async_mode else StepsInTurn)(engine, receive)

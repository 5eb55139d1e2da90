"""Which requests run in the next step, and how many tokens of each. No tensors, no model.

First come, first served: running requests are older than waiting ones, a request starts only when
all before it have started, and when blocks run out the youngest gives up its own. So the oldest
request moves on in every step, and every request becomes the oldest one day.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from nxdi.generation.blocks import BlockManager
from nxdi.generation.requests import Request
from nxdi.generation.work import Work


@dataclass(frozen=True)
class StepLimits:
    """What one step may hold.

    max_rows: requests that run at once.
    max_tokens: new tokens per step, over all rows.
    max_prompt: tokens of a row that starts at position 0.
    max_chunk: tokens of a row that continues; 1 where no graph takes more.
    whole_from: a sequence longer than this starts with more tokens than this at once; None: never.
    """

    max_rows: int
    max_tokens: int
    max_prompt: int
    max_chunk: int
    whole_from: int | None = None


class Scheduler:
    """Keeps the requests in order of arrival, and their blocks."""

    def __init__(self, blocks: BlockManager, limits: StepLimits) -> None:
        self.blocks, self.limits = blocks, limits
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Forget a request that has finished or was cancelled; its blocks are free."""
        if request in self.running:
            self.running.remove(request)
            self.blocks.free(request.id)
        else:
            self.waiting.remove(request)

    def plan(self) -> list[Work[Request]]:
        """The work of the next step.

        Every running request whose prompt is computed gets its next token; what is left of the
        token budget goes to prompts, oldest first.
        """
        self._make_room()
        decoding = [request for request in self.running if request.num_pending == 1]
        works = [_next(request, 1) for request in decoding]
        budget = self.limits.max_tokens - len(works)
        for request in self.running:
            if request.num_pending > 1 and budget > 0:
                works.append(self._chunk(request, budget))
                budget -= works[-1].num_tokens
        while budget > 0 and self._admit():
            works.append(self._chunk(self.running[-1], budget))
            budget -= works[-1].num_tokens
        return works

    def _make_room(self) -> None:
        """Let each running request hold its tokens, oldest first; the youngest pay for it."""
        index = 0
        while index < len(self.running):
            request = self.running[index]
            if request.num_computed == self.limits.whole_from:
                self._start_over(request)
            if self.blocks.grow(request.id, len(request.tokens)):
                index += 1
            else:
                self._preempt(self.running[-1])

    def _preempt(self, request: Request) -> None:
        """Take the blocks away; all tokens so far become a prompt, which waits for its turn."""
        self.running.remove(request)
        self.blocks.free(request.id)
        request.start(0)
        self.waiting.appendleft(request)

    def _start_over(self, request: Request) -> None:
        """Compute all tokens so far again, into blocks of its own."""
        self.blocks.free(request.id)
        request.start(self.blocks.admit(request.id, request.tokens))

    def _admit(self) -> bool:
        """Start the request that has waited longest, if there is a row and blocks for all of it."""
        if not self.waiting or len(self.running) == self.limits.max_rows:
            return False
        request = self.waiting[0]
        if self._will_share(request):
            return False
        num_shared = self.blocks.admit(request.id, request.tokens)
        has_room = self.blocks.grow(request.id, len(request.tokens))
        # One block for each that may need it soon: else a start is undone a few steps later.
        if not has_room or self.blocks.num_free < sum(map(self._may_grow, self.running)):
            self.blocks.free(request.id)
            return False
        request.start(num_shared)
        self.running.append(self.waiting.popleft())
        return True

    def _will_share(self, request: Request) -> bool:
        """Whether a running request is about to compute the next block that this one needs.

        It does so in the steps that follow, or runs no more: the wait has an end.
        """
        if not self.blocks.shares_prefixes:
            return False
        end = (len(self.blocks.find(request.tokens)) + 1) * self.blocks.block_size
        return end < len(request.tokens) and any(
            other.num_computed < end and other.tokens[:end] == request.tokens[:end]
            for other in self.running
        )

    def _may_grow(self, request: Request) -> bool:
        # The last new token is never computed.
        most = self.blocks.num_needed(request.max_len - 1)
        return most > len(self.blocks.table(request.id))

    def _chunk(self, request: Request, budget: int) -> Work[Request]:
        """The next part of a prompt, within the budget where it can be cut."""
        limits, num_pending = self.limits, request.num_pending
        if request.num_computed:
            return _next(request, min(num_pending, limits.max_chunk, budget))
        whole_from = limits.whole_from
        is_whole = whole_from is not None and len(request.tokens) > whole_from
        if limits.max_chunk == 1 or is_whole:
            return _next(request, min(num_pending, limits.max_prompt))
        return _next(request, min(num_pending, limits.max_prompt, limits.max_chunk, budget))


def _next(request: Request, num_tokens: int) -> Work[Request]:
    return Work(request, request.num_computed, request.num_computed + num_tokens)

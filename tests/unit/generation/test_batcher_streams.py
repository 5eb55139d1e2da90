"""Reading one request while all run."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from fake_model import FakeModel, batcher, some_prompts
from nxdi.generation import RequestOptions
from nxdi.generation.requests import Output

pytestmark = pytest.mark.usefixtures("either_steps")

GREEDY = RequestOptions(max_new_tokens=12)


def test_iterating_over_one_request_runs_the_others() -> None:
    model = FakeModel()
    of = batcher(model)
    a, b = of.add([1], GREEDY), of.add([2], RequestOptions(max_new_tokens=5))
    outputs = list(of.stream(a))
    assert [output.token for output in outputs] == model.greedy([1], 12)
    assert [output.finish_reason for output in outputs] == [None] * 11 + ["length"]
    # b has finished meanwhile; its outputs are still there, once.
    assert [output.token for output in of.stream(b)] == model.greedy([2], 5)
    assert of.num_requests == 0


def test_leaving_the_loop_does_not_cancel() -> None:
    model = FakeModel()
    of = batcher(model)
    request_id = of.add([1], GREEDY)
    first = next(iter(of.stream(request_id)))
    rest = [output.token for output in of.stream(request_id)]
    assert [first.token, *rest] == model.greedy([1], 12)


def test_a_cancelled_stream_ends() -> None:
    of = batcher(FakeModel())
    request_id = of.add([1], GREEDY)
    stream = iter(of.stream(request_id))
    next(stream)
    of.cancel(request_id)
    assert list(stream) == []


def test_async_iteration() -> None:
    """Each task reads its own request, and no two steps run at once."""
    model = FakeModel(blocks=17)
    of = batcher(model)
    prompts = some_prompts(6, 10)

    async def read(prompt: list[int]) -> list[Output]:
        return [output async for output in of.stream(of.add(prompt, GREEDY))]

    async def all_at_once() -> list[list[Output]]:
        return await asyncio.gather(*map(read, prompts))

    for _ in range(2):  # each run has an event loop of its own
        for prompt, outputs in zip(prompts, asyncio.run(all_at_once()), strict=True):
            assert [output.token for output in outputs] == model.greedy(prompt, 12)
    assert of.num_requests == 0
    # Together: far fewer calls than 2 * 10 * 12.
    assert len(model.calls) < 150


def test_requests_come_and_go_during_async_steps() -> None:
    model = FakeModel(blocks=17)
    of = batcher(model)

    async def come_and_go() -> list[int]:
        kept = of.add([1, 2, 3], GREEDY)

        async def disturb() -> None:
            for n in range(30):
                request_id = of.add([n] * 9)
                await asyncio.sleep(0)
                of.cancel(request_id)

        task = asyncio.create_task(disturb())
        tokens = [output.token async for output in of.stream(kept)]
        await task
        return tokens

    assert asyncio.run(come_and_go()) == model.greedy([1, 2, 3], 12)
    assert of.step() == []
    assert of._blocks.num_free == 17


def test_an_error_of_the_model_reaches_all_who_wait() -> None:
    model = FakeModel(fail_in=3)
    of = batcher(model)

    async def read() -> None:
        async for _ in of.stream(of.add([1], GREEDY)):
            pass

    async def both() -> list[Any]:
        return await asyncio.gather(read(), read(), return_exceptions=True)

    assert [str(error) for error in asyncio.run(both())] == ["the device is gone"] * 2


class HeldModel(FakeModel):
    """A model whose calls wait until they are let through."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.is_called, self.may_go = threading.Event(), threading.Event()

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        self.is_called.set()
        assert self.may_go.wait(timeout=60)
        return super().__call__(*args, **inputs)


async def called(model: HeldModel) -> None:
    """Wait until a step is in the middle of a call."""
    assert await asyncio.to_thread(model.is_called.wait, 60)


def test_a_reader_that_goes_away_takes_nobody_with_it() -> None:
    model = HeldModel()
    of = batcher(model)

    async def read(prompt: list[int]) -> list[int]:
        return [output.token async for output in of.stream(of.add(prompt, GREEDY))]

    async def one_leaves() -> list[int]:
        leaves, stays = asyncio.create_task(read([1])), asyncio.create_task(read([2]))
        await called(model)
        leaves.cancel()
        model.may_go.set()
        return await stays

    assert asyncio.run(one_leaves()) == model.greedy([2], 12)
    assert list(of.run()) == [0]  # leaving does not cancel the request itself


def test_cancelling_in_the_step_that_ends_a_request() -> None:
    model = HeldModel()
    of = batcher(model)

    async def read(request_id: int) -> list[int]:
        return [output.token async for output in of.stream(request_id)]

    async def cancel_late() -> list[int]:
        request_id = of.add([1], RequestOptions(max_new_tokens=1))
        reading = asyncio.create_task(read(request_id))
        await called(model)
        of.cancel(request_id)
        model.may_go.set()
        return await reading

    assert asyncio.run(cancel_late()) == []
    of.add([2], GREEDY)
    assert [done.tokens for done in of.run().values()] == [model.greedy([2], 12)]
    assert of._blocks.num_free == of._blocks.num_blocks

"""The batcher over a model whose tokens show every wrong slot, block or share."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fake_model import FakeModel, batcher, some_prompts
from nxdi.config import OnDeviceSamplingConfig
from nxdi.errors import ConfigError
from nxdi.generation import ContinuousBatcher, RequestOptions
from nxdi.generation.work import Work
from nxdi.types import Phase

pytestmark = pytest.mark.usefixtures("either_steps")

LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {"blocks": None},
    "contiguous, whole prompts": {"blocks": None, "chunk": None},
    "paged": {},
    "paged, whole prompts": {"chunk": None},
    "paged, small pool": {"blocks": 17, "rows": 6},
    "paged, small pool, whole prompts": {"blocks": 17, "chunk": None},
    "prefixes": {"shares_prefixes": True},
    "prefixes, small pool": {"shares_prefixes": True, "blocks": 17, "rows": 6, "chunk": 5},
}


def num_free(of: ContinuousBatcher) -> int:
    return of._blocks.num_free


def some_options(seed: int, number: int) -> list[RequestOptions]:
    """Greedy and sampled requests."""
    draw = random.Random(seed)
    return [
        RequestOptions(max_new_tokens=draw.randint(1, 20))
        if draw.random() < 0.5
        else RequestOptions(
            max_new_tokens=draw.randint(1, 20),
            do_sample=True,
            temperature=draw.choice([0.7, 1.0, 1.5]),
            top_k=draw.choice([0, 3]),
            top_p=draw.choice([0.8, 1.0]),
            seed=draw.randrange(100),
        )
        for _ in range(number)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_tokens_are_those_of_running_alone(layout: str, seed: int) -> None:
    """Whatever arrives when, and however prompts are cut and requests preempted."""
    draw = random.Random(seed)
    model = FakeModel(**{"max_context_length": 20, **LAYOUTS[layout]})
    of = batcher(model, max_step_tokens=draw.choice([None, model.rows + 1, model.rows + 6]))
    prompts, options = some_prompts(seed, 20), some_options(seed, 20)
    waiting = list(zip(prompts, options, strict=True))
    ids: list[int] = []
    got: dict[int, list[int]] = {}
    while waiting or of.num_requests:
        while waiting and draw.random() < 0.6:
            ids.append(of.add(*waiting.pop(0)))
        for output in of.step():
            got.setdefault(output.request_id, []).append(output.token)
    for request_id, prompt, option in zip(ids, prompts, options, strict=True):
        assert got[request_id] == model.expected(prompt, option.max_new_tokens or 0, option)
    assert num_free(of) == of._blocks.num_blocks


def test_the_layouts_do_what_they_are_named_for() -> None:
    """Else the test above would show less than it seems to."""
    prompts, options = some_prompts(0, 20), RequestOptions(max_new_tokens=20)
    computed = {}
    for name, layout in LAYOUTS.items():
        model = FakeModel(**{"max_context_length": 20, **layout})
        of = batcher(model)
        for prompt in prompts:
            of.add(prompt, options)
        of.run()
        computed[name] = sum(sum(counts) for _, counts in model.calls)
        has_chunks = any(phase == Phase.EXTEND for phase, _ in model.calls)
        assert has_chunks is (layout.get("chunk", 8) is not None)
    once = sum(map(len, prompts)) + 20 * 19
    assert computed["contiguous"] == computed["paged"] == once
    assert computed["paged, small pool"] > once  # preempted and computed again
    assert computed["paged, small pool, whole prompts"] > once
    assert computed["prefixes"] < once


@pytest.mark.parametrize("chunk", [2, 3, 16, 64])
@pytest.mark.parametrize("max_step_tokens", [5, 8, None])
def test_the_chunk_size_changes_no_token(chunk: int, max_step_tokens: int | None) -> None:
    model = FakeModel(chunk=chunk)
    of = batcher(model, max_step_tokens=max_step_tokens)
    prompts = some_prompts(5, 8, longest=40)
    for prompt in prompts:
        of.add(prompt, RequestOptions(max_new_tokens=9))
    done = of.run()
    assert [done[i].tokens for i in done] == [model.greedy(prompt, 9) for prompt in prompts]
    assert max(max(counts) for _, counts in model.calls) <= chunk


def test_running_requests_get_a_token_in_every_step() -> None:
    of = batcher(FakeModel(chunk=4))
    short = of.add([1, 2], RequestOptions(max_new_tokens=30))
    of.step()
    long = of.add([3] * 40, RequestOptions(max_new_tokens=3))
    steps = [{output.request_id for output in of.step()} for _ in range(11)]
    assert all(short in step for step in steps)
    # 40 tokens in chunks of 4 take ten steps; ahead, the one after the first has begun already.
    first = 9 + FakeModel.async_mode
    assert [long in step for step in steps] == [number >= first for number in range(11)]


def test_a_step_computes_no_more_than_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    of = batcher(FakeModel(max_context_length=16, chunk=16), max_step_tokens=10)
    for prompt in some_prompts(3, 12):
        of.add(prompt, RequestOptions(max_new_tokens=6))
    plan, planned = of._scheduler.plan, []

    def recorded() -> list[Work]:
        works = plan()
        planned.append(sum(work.num_tokens for work in works))
        return works

    monkeypatch.setattr(of._scheduler, "plan", recorded)
    of.run()
    assert max(planned) == 10


def test_nobody_is_passed_over() -> None:
    """First come, first served: a request that needs much room is not overtaken by small ones."""
    of = batcher(FakeModel(blocks=12, rows=4, max_context_length=40, chunk=40))
    first = of.add([1] * 8, RequestOptions(max_new_tokens=12))
    of.step()
    big = of.add([2] * 40, RequestOptions(max_new_tokens=4))
    small = [of.add([3, n], RequestOptions(max_new_tokens=2)) for n in range(20)]
    began = []
    while of.num_requests:
        began += [out.request_id for out in of.step() if out.request_id not in began]
    assert began == [first, big, *small] or began == [big, *small]


def test_the_oldest_is_never_preempted() -> None:
    """So each request finishes: it becomes the oldest one day."""
    model = FakeModel(blocks=12, rows=4, chunk=8)
    of = batcher(model)
    ids = [of.add([n] * 9, RequestOptions(max_new_tokens=24)) for n in range(6)]
    unfinished, num_silent = list(ids), dict.fromkeys(ids, 0)
    while of.num_requests:
        outputs = {output.request_id: output for output in of.step()}
        oldest = unfinished[0]
        num_silent[oldest] = 0 if oldest in outputs else num_silent[oldest] + 1
        # Its prompt of 9 tokens takes two steps, computed once more if it was preempted before:
        # 32 tokens in chunks of 8.
        assert num_silent[oldest] <= 4
        unfinished = [i for i in unfinished if i in of._requests]
    assert sum(sum(counts) for _, counts in model.calls) > 6 * (9 + 23)


def test_rows_are_reused_lowest_first() -> None:
    model = FakeModel(blocks=None, rows=3)
    of = batcher(model)
    ids = [of.add([n], RequestOptions(max_new_tokens=9)) for n in range(3)]
    of.step()
    of.cancel(ids[0])
    of.cancel(ids[1])
    of.add([7], RequestOptions(max_new_tokens=9))
    of.step()
    assert [of._blocks.table(request.id) for request in of._scheduler.running] == [[2], [0]]


def test_a_prefix_is_found_by_those_that_come_with_it() -> None:
    """Of requests that arrive together, one computes what all share, and the others find it."""
    model = FakeModel(shares_prefixes=True, chunk=16, rows=8, max_context_length=16)
    of = batcher(model, max_step_tokens=25)
    shared = list(range(16))
    prompts = [[*shared, 20 + n] for n in range(6)]
    for prompt in prompts:
        of.add(prompt, RequestOptions(max_new_tokens=2))
    done = of.run()
    assert [done[i].tokens for i in done] == [model.greedy(prompt, 2) for prompt in prompts]
    computed = sum(sum(counts) for _, counts in model.calls)
    # What they share once, and of each its last token and one new one.
    assert computed == len(shared) + 6 + 6


def test_nothing_to_do() -> None:
    of = batcher(FakeModel())
    assert of.step() == []
    assert of.run() == {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cancelling_at_any_moment_frees_everything_in_one_step(layout: str) -> None:
    draw = random.Random(1)
    model = FakeModel(**{"max_context_length": 20, **LAYOUTS[layout]})
    of = batcher(model, max_step_tokens=model.rows + 4)
    prompts = some_prompts(9, 100)
    others = {of.add(prompt, RequestOptions(max_new_tokens=5)): prompt for prompt in prompts[:5]}
    got: dict[int, list[int]] = {request_id: [] for request_id in others}
    num_cancelled = 0
    while num_cancelled < 500 // len(LAYOUTS) + 1:
        ids = [of.add(prompt) for prompt in draw.choices(prompts, k=draw.randint(1, 6))]
        for _ in range(draw.randint(0, 7)):
            for output in of.step():
                got.setdefault(output.request_id, []).append(output.token)
        for request_id in ids:
            if request_id in of._requests:
                of.cancel(request_id)
                num_cancelled += 1
        before = {name: len(tokens) for name, tokens in got.items()}
        for output in of.step():
            got.setdefault(output.request_id, []).append(output.token)
        assert all(len(got[name]) == before.get(name) for name in ids if name in got)
        if not of.num_requests:
            assert num_free(of) == of._blocks.num_blocks
    of.run()
    assert num_free(of) == of._blocks.num_blocks
    for request_id, prompt in others.items():
        assert got[request_id] == model.greedy(prompt, 5)


def test_cancelling_twice() -> None:
    of = batcher(FakeModel())
    request_id = of.add([1])
    of.cancel(request_id)
    with pytest.raises(ConfigError, match=f"no request {request_id}: .* is cancelled"):
        of.cancel(request_id)
    assert of.step() == []


@pytest.mark.parametrize("call", ["cancel", "stream"])
def test_an_unknown_request(call: str) -> None:
    of = batcher(FakeModel())
    done = of.add([1], RequestOptions(max_new_tokens=1))
    of.run()
    for request_id in (done, 99):
        with pytest.raises(ConfigError, match=f"no request {request_id}"):
            getattr(of, call)(request_id)


@pytest.mark.parametrize(
    "outputs", [{}, {"on_device_sampling_config": OnDeviceSamplingConfig(dynamic=True)}]
)
def test_a_real_model(tiny: Any, outputs: dict[str, Any]) -> None:
    of = ContinuousBatcher(tiny.adapter(batch_size=2, **outputs).neuron_model)
    prompts = [ids[mask.bool()] for ids, mask in zip(tiny.ids, tiny.mask, strict=True)]
    ids = [of.add(prompt, RequestOptions(max_new_tokens=20)) for prompt in prompts]
    done = of.run()
    assert [done[i].tokens for i in ids] == tiny.greedy().tolist()

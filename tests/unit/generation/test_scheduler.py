"""What runs in a step, decided without a model: here a "model" only says that it has computed."""

from __future__ import annotations

from collections.abc import Sequence

from nxdi.generation.blocks import BlockManager
from nxdi.generation.requests import Request, RequestOptions
from nxdi.generation.scheduler import Scheduler, StepLimits
from nxdi.generation.work import Work
from nxdi.types import Phase

SIZE = 4


def scheduler(
    num_blocks: int = 20,
    *,
    max_rows: int = 4,
    max_tokens: int = 12,
    max_chunk: int = 8,
    whole_from: int | None = None,
    shares_prefixes: bool = False,
) -> Scheduler:
    limits = StepLimits(
        max_rows, max_tokens, max_prompt=16, max_chunk=max_chunk, whole_from=whole_from
    )
    return Scheduler(BlockManager(num_blocks, SIZE, shares_prefixes), limits)


def added(
    of: Scheduler,
    request_id: int,
    prompt_len: int,
    max_new_tokens: int = 10,
    prefix: Sequence[int] = (),
) -> Request:
    """A request for `prefix`, and `prompt_len` tokens of its own."""
    request = Request(
        request_id,
        [*prefix, *[request_id] * prompt_len],
        RequestOptions(),
        max_new_tokens=max_new_tokens,
        seed=0,
        stop_token_ids=frozenset(),
        text=None,
    )
    of.add(request)
    return request


def step(of: Scheduler) -> list[tuple[int, Phase, int]]:
    """Compute what is planned. Returns: (request, phase, tokens) of each work."""
    works = of.plan()
    seen = [(work.request.id, work.phase, work.num_tokens) for work in works]
    for work in works:
        request, brings_token = work.request, work.brings_token
        of.blocks.fill(request.id, request.tokens[work.start : work.stop])
        request.num_computed = work.stop
        if brings_token:
            request.take(0)
            request.publish(0)
        if request.finish_reason is not None:
            of.remove(request)
    return seen


def test_the_phase_of_work() -> None:
    request = added(scheduler(), 1, 9)
    phases = {
        (0, 4): Phase.PREFILL,
        (0, 1): Phase.PREFILL,
        (4, 8): Phase.EXTEND,
        (8, 9): Phase.DECODE,
    }
    assert {(a, b): Work(request, a, b).phase for a, b in phases} == phases
    assert [Work(request, a, b).brings_token for a, b in phases] == [False, False, False, True]


def test_a_prompt_in_chunks_beside_a_running_request() -> None:
    of = scheduler()
    added(of, 1, 3)
    assert step(of) == [(1, Phase.PREFILL, 3)]
    added(of, 2, 21)
    assert step(of) == [(1, Phase.DECODE, 1), (2, Phase.PREFILL, 8)]
    assert step(of) == [(1, Phase.DECODE, 1), (2, Phase.EXTEND, 8)]
    assert step(of) == [(1, Phase.DECODE, 1), (2, Phase.EXTEND, 5)]
    assert step(of) == [(1, Phase.DECODE, 1), (2, Phase.DECODE, 1)]


def test_the_budget_goes_to_the_oldest_prompt() -> None:
    of = scheduler(max_tokens=12)
    for request_id in (1, 2, 3):
        added(of, request_id, 10)
    assert step(of) == [(1, Phase.PREFILL, 8), (2, Phase.PREFILL, 4)]
    # 2 is left for the third: it is not even admitted before there is something for it to do.
    assert step(of) == [(1, Phase.EXTEND, 2), (2, Phase.EXTEND, 6), (3, Phase.PREFILL, 4)]


def test_without_graphs_for_chunks_prompts_are_whole() -> None:
    of = scheduler(max_chunk=1, max_tokens=12)
    for request_id in (1, 2):
        added(of, request_id, 15)
    assert step(of) == [(1, Phase.PREFILL, 15)]
    assert step(of) == [(1, Phase.DECODE, 1), (2, Phase.PREFILL, 15)]


def test_no_more_rows_than_there_are() -> None:
    of = scheduler(max_rows=2)
    for request_id in (1, 2, 3):
        added(of, request_id, 2, max_new_tokens=2)
    assert [request_id for request_id, *_ in step(of)] == [1, 2]
    assert [request_id for request_id, *_ in step(of)] == [1, 2]
    assert [request_id for request_id, *_ in step(of)] == [3]


def test_a_start_leaves_a_block_to_each_that_may_grow() -> None:
    of = scheduler(num_blocks=4)
    added(of, 1, 4, max_new_tokens=9)
    step(of)
    second = added(of, 2, 9, max_new_tokens=1)
    for _ in range(8):
        assert [request_id for request_id, *_ in step(of)] == [1]
    assert list(of.waiting) == [second]
    assert step(of) == [(2, Phase.PREFILL, 8)]


def test_one_that_cannot_grow_needs_no_block_left() -> None:
    of = scheduler(num_blocks=2)
    added(of, 1, 3, max_new_tokens=2)
    step(of)
    added(of, 2, 4, max_new_tokens=1)
    assert step(of) == [(1, Phase.DECODE, 1), (2, Phase.PREFILL, 4)]


def test_the_youngest_gives_up_its_blocks_and_continues_first() -> None:
    of = scheduler(num_blocks=6)
    first, second, third = (added(of, request_id, 5) for request_id in (1, 2, 3))
    step(of)
    assert of.running == [first, second]  # each may grow, so nothing is left for the third
    while second in of.running:
        step(of)
    assert (first.num_computed, second.num_computed) == (13, 0)
    assert len(second.tokens) == 13
    assert list(of.waiting) == [second, third]
    while first in of.running:
        assert [request_id for request_id, *_ in step(of)] == [1]
    assert step(of)[0] == (2, Phase.PREFILL, 8)


def test_a_preempted_request_finds_its_blocks_again() -> None:
    of = scheduler(num_blocks=6, shares_prefixes=True)
    first, second = added(of, 1, 5), added(of, 2, 5)
    step(of)
    while second in of.running:
        step(of)
    assert len(second.tokens) == 13
    while first in of.running:
        step(of)
    works = of.plan()
    assert [(work.request.id, work.start) for work in works] == [(2, 8)]


SHARED = [7] * 9  # two blocks and a token


def test_one_computes_a_prefix_and_those_that_came_with_it_share_it() -> None:
    of = scheduler(shares_prefixes=True, max_tokens=32)
    for request_id in (1, 2, 3):
        added(of, request_id, 2, prefix=SHARED)
    assert step(of) == [(1, Phase.PREFILL, 8)]
    assert step(of) == [(1, Phase.EXTEND, 3), (2, Phase.EXTEND, 3), (3, Phase.EXTEND, 3)]
    assert of.blocks.table(1)[:2] == of.blocks.table(2)[:2] == of.blocks.table(3)[:2]


def test_a_prefix_in_pieces_is_waited_for_to_its_end() -> None:
    of = scheduler(shares_prefixes=True)
    for request_id in (1, 2):
        added(of, request_id, 2, prefix=[7] * 20)
    assert [step(of) for _ in range(3)] == [
        [(1, Phase.PREFILL, 8)],
        [(1, Phase.EXTEND, 8)],
        [(1, Phase.EXTEND, 6)],
    ]
    assert step(of) == [(1, Phase.DECODE, 1), (2, Phase.EXTEND, 2)]


def test_nobody_waits_for_less_than_a_block_or_without_prefix_caching() -> None:
    together = [(1, Phase.PREFILL, 5), (2, Phase.PREFILL, 5)]
    for shares_prefixes, prefix in ((False, [7] * 4), (True, [7] * 3)):
        of = scheduler(shares_prefixes=shares_prefixes)
        for request_id in (1, 2):
            added(of, request_id, 5 - len(prefix), prefix=prefix)
        assert step(of) == together
    # The last token is computed anew, so a block that ends with it is not shared.
    of = scheduler(shares_prefixes=True)
    added(of, 1, 1, prefix=[7] * 4)
    added(of, 2, 0, prefix=[7] * 4)
    assert step(of) == [(1, Phase.PREFILL, 5), (2, Phase.PREFILL, 4)]


def test_a_wait_ends_with_the_request_that_was_waited_for() -> None:
    of = scheduler(shares_prefixes=True)
    first = added(of, 1, 2, prefix=SHARED)
    added(of, 2, 2, prefix=SHARED)
    assert [work.request.id for work in of.plan()] == [1]
    of.remove(first)
    assert step(of) == [(2, Phase.PREFILL, 8)]


def test_longrope_starts_over_with_all_tokens_at_once() -> None:
    of = scheduler(whole_from=6, max_tokens=5)
    added(of, 1, 5)
    added(of, 2, 12)
    assert step(of) == [(1, Phase.PREFILL, 5)]
    assert step(of) == [(1, Phase.DECODE, 1), (2, Phase.PREFILL, 12)]
    assert step(of) == [(2, Phase.DECODE, 1), (1, Phase.PREFILL, 7)]
    assert step(of) == [(1, Phase.DECODE, 1), (2, Phase.DECODE, 1)]


def test_removing() -> None:
    of = scheduler()
    running, waiting = added(of, 1, 3), added(of, 2, 3)
    of.limits = StepLimits(1, 12, 16, 8)
    step(of)
    of.remove(waiting)
    of.remove(running)
    assert of.plan() == []
    assert of.blocks.num_free == of.blocks.num_blocks

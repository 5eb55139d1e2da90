"""Requests that do not fit, and errors of the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fake_model import VOCAB_SIZE, FakeModel, batcher, some_prompts
from nxdi.errors import BucketError, ConfigError, ShapeError
from nxdi.generation import RequestOptions

pytestmark = pytest.mark.usefixtures("either_steps")

GREEDY = RequestOptions(max_new_tokens=12)


def test_bad_requests_change_nothing_for_the_others() -> None:
    model = FakeModel()
    of = batcher(model)
    good = of.add([1, 2], GREEDY)
    of.step()
    bad: list[tuple[Any, RequestOptions, type[Exception], str]] = [
        ([], GREEDY, ShapeError, "at least one integer token id"),
        ([1.5], GREEDY, ShapeError, "integer token id, not torch.float32"),
        ([[1], [2]], GREEDY, ShapeError, r"shape \(2, 1\)"),
        (["a", "b"], GREEDY, ShapeError, "one text or one row of token ids"),
        ([[1, 2], [3]], GREEDY, ShapeError, "one text or one row of token ids"),
        ([VOCAB_SIZE], GREEDY, ShapeError, f"vocab_size={VOCAB_SIZE}"),
        ([1] * 65, GREEDY, BucketError, "prompt of 65 tokens is longer than 64"),
        ([1] * 60, GREEDY, BucketError, "seq_len=64; ask for at most 5 new tokens"),
    ]
    for prompt, options, error, message in bad:
        with pytest.raises(error, match=message):
            of.add(prompt, options)
        of.step()
    assert of.run()[good].tokens == model.greedy([1, 2], 12)


def test_a_prompt_as_a_tensor() -> None:
    model = FakeModel()
    of = batcher(model)
    for prompt in (torch.tensor([1, 2]), torch.tensor([[1, 2]])):
        of.add(prompt, GREEDY)
    assert [done.tokens for done in of.run().values()] == [model.greedy([1, 2], 12)] * 2


def test_a_request_longer_than_the_pool() -> None:
    of = batcher(FakeModel(blocks=5))
    with pytest.raises(BucketError, match=r"pa_num_blocks .* pa_block_size=20; .* 11 new tokens"):
        of.add([1] * 10, GREEDY)
    of.add([1] * 10, RequestOptions(max_new_tokens=11))
    (done,) = of.run().values()
    assert len(done.tokens) == 11


def test_a_prompt_that_cannot_be_cut() -> None:
    with pytest.raises(BucketError, match="longer than 16, which max_context_length"):
        batcher(FakeModel(chunk=None)).add([1] * 17)
    model = FakeModel(chunk=None, allow_input_truncation=True)
    of = batcher(model)
    prompt = list(range(20))
    of.add(prompt, GREEDY)
    assert of.run()[0].tokens == model.greedy(prompt[:16], 12)


def test_a_sequence_longer_than_what_pieces_see() -> None:
    """It could not be computed again after it has lost its blocks."""
    of = batcher(FakeModel(max_context=32))
    with pytest.raises(BucketError, match=r"max\(prefix_buckets\)=32; ask for at most 23 new"):
        of.add([1] * 10, RequestOptions(max_new_tokens=24))
    of.add([1] * 10, RequestOptions(max_new_tokens=23))
    (done,) = of.run().values()
    assert len(done.tokens) == 23


def test_a_sequence_that_never_loses_its_blocks_may_grow_beyond_what_pieces_see() -> None:
    model = FakeModel(max_context=32, blocks=4 * 16)
    of = batcher(model)
    with pytest.raises(BucketError, match="prompt of 33 tokens is longer than 32, which"):
        of.add([1] * 33)
    for _ in range(6):
        of.add([1] * 32)
    assert [done.tokens for done in of.run().values()] == [model.greedy([1] * 32, 33)] * 6


def test_a_budget_without_room_for_prompts() -> None:
    with pytest.raises(
        ConfigError, match=r"max_step_tokens=4 .* tkg_batch_size=4 .* by at least 1"
    ):
        batcher(FakeModel(rows=4), max_step_tokens=4)


@pytest.mark.parametrize("blocks", [None, 40, 14])
@pytest.mark.parametrize("chunk", [None, 8])
def test_longrope_starts_over(blocks: int | None, chunk: int | None) -> None:
    """From one length on, all tokens of a sequence are computed anew, in one go."""
    model = FakeModel(
        blocks=blocks, chunk=chunk, prefill_again_at=12, max_context_length=20, shares_prefixes=True
    )
    of = batcher(model)
    prompts = some_prompts(2, 8, longest=15)
    for prompt in prompts:
        of.add(prompt, RequestOptions(max_new_tokens=25))
    done = of.run()
    assert [done[i].tokens for i in done] == [model.greedy(prompt, 25) for prompt in prompts]


def test_longrope_that_cannot_start_over() -> None:
    of = batcher(FakeModel(prefill_again_at=20, max_context_length=16))
    with pytest.raises(BucketError, match=r"LongRoPE.*=20; ask for at most 19"):
        of.add([1, 2], RequestOptions(max_new_tokens=20))
    of.add([1, 2], RequestOptions(max_new_tokens=19))
    assert of.run()[0].tokens == FakeModel().greedy([1, 2], 19)


@pytest.mark.parametrize("fail_in", range(8))
def test_an_error_of_the_model_loses_nothing(fail_in: int) -> None:
    model = FakeModel(chunk=4, shares_prefixes=True)
    of = batcher(model, max_step_tokens=9)
    prompts = some_prompts(4, 6)
    ids = [of.add(prompt, GREEDY) for prompt in prompts]
    model.fail_in = fail_in
    got: dict[int, list[int]] = {i: [] for i in ids}
    num_errors = 0
    while of.num_requests:
        try:
            for output in of.step():
                got[output.request_id].append(output.token)
        except RuntimeError:
            num_errors += 1
    assert num_errors == 1
    assert [got[i] for i in ids] == [model.greedy(prompt, 12) for prompt in prompts]

"""generate() refuses what does not fit before anything is computed, and takes all that fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nxdi.errors import BucketError, ShapeError
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter

Adapter = HuggingFaceGenerationAdapter


@pytest.fixture
def idle(host: Adapter, monkeypatch: pytest.MonkeyPatch) -> Adapter:
    """An adapter that fails the test if a step is run. seq_len 48, prompts of 16, batch_size 6."""

    def step(batch: object) -> None:
        pytest.fail("a step was run")

    monkeypatch.setattr(host.neuron_model.runner, "step", step)
    return host


def prompts(num_rows: int, length: int) -> torch.Tensor:
    return torch.randint(1, 97, (num_rows, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"repetition_penalty": 1.2}, "RepetitionPenaltyLogitsProcessor"),
        ({"min_new_tokens": 1, "eos_token_id": 5}, "MinNewTokensLengthLogitsProcessor"),
        ({"max_time": 9.0}, "MaxTimeCriteria"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
    ],
)
def test_what_takes_all_prompts_at_once(options: dict[str, Any], name: str, idle: Adapter) -> None:
    message = rf"7 prompts do not fit batch_size=6, and with .*{name}.*raise batch_size"
    with pytest.raises(BucketError, match=message):
        idle.generate(prompts(7, 3), max_new_tokens=2, **options)


@pytest.mark.parametrize("side", ["left", "right"])
def test_more_prompts_than_rows_take_turns(side: str, tiny: Any, host: Adapter) -> None:
    ids = prompts(15, 12)
    mask = torch.ones_like(ids)
    for row in range(15):
        short = slice(0, row % 5) if side == "left" else slice(12 - row % 5, None)
        mask[row, short] = 0
    options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": 7, "pad_token_id": 0}
    many = host.generate(ids, attention_mask=mask, **options)
    for start in range(0, 15, 5):
        rows = slice(start, start + 5)
        few = host.generate(ids[rows], attention_mask=mask[rows], **options)
        width = few.shape[1]
        assert many[rows, :width].tolist() == few.tolist()
        assert not many[rows, width:].any()


def test_sampled_rows_depend_on_their_seeds_only(host: Adapter) -> None:
    options = {"max_new_tokens": 6, "do_sample": True, "top_k": 20, "temperature": 1.3}
    seeds = list(range(9))
    many = host.generate(prompts(9, 5), seeds=seeds, **options)
    again = host.generate(prompts(9, 5).flip(0), seeds=seeds[::-1], **options)
    assert again.flip(0).tolist() == many.tolist()
    assert len({tuple(row) for row in many[:, 5:].tolist()}) > 5


def test_prompt_too_long(idle: Adapter) -> None:
    message = r"prompt of 17 tokens is longer than max_context_length=16; .*compile again"
    with pytest.raises(BucketError, match=message):
        idle.generate(prompts(2, 17), max_new_tokens=2)


def test_generation_past_seq_len(idle: Adapter) -> None:
    message = r"prompt of 10 tokens plus 40 new tokens is longer than seq_len=48; .*at most 39"
    with pytest.raises(BucketError, match=message):
        idle.generate(prompts(1, 10), max_new_tokens=40)


def test_generation_up_to_seq_len(tiny: Any, host: Adapter) -> None:
    ids = prompts(1, 10)
    options = {"max_new_tokens": 39, "do_sample": False}
    assert host.generate(ids, **options).tolist() == tiny.hf.generate(ids, **options).tolist()


def test_only_real_tokens_count(tiny: Any, host: Adapter) -> None:
    """Columns of padding take no room in the cache."""
    ids = torch.cat([torch.zeros(1, 30, dtype=torch.int64), prompts(1, 10)], dim=1)
    mask = (ids != 0).long()
    options = {"max_new_tokens": 30, "do_sample": False}
    out = host.generate(ids, attention_mask=mask, **options)
    assert out[0, 40:].tolist() == tiny.hf.generate(ids[:, 30:], **options)[0, 10:].tolist()


@pytest.mark.parametrize("shape", [(1, 0), (0, 4), (4,)])
def test_empty_prompt(idle: Adapter, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="at least one token"):
        idle.generate(torch.ones(shape, dtype=torch.int64), max_new_tokens=2)


def test_no_prompt(idle: Adapter) -> None:
    with pytest.raises(ShapeError, match="at least one token, not None"):
        idle.generate(max_new_tokens=2)


@pytest.mark.parametrize("token", [97, -1])
def test_token_outside_the_vocabulary(idle: Adapter, token: int) -> None:
    ids = prompts(2, 5)
    ids[1, 3] = token
    with pytest.raises(ShapeError, match=rf"token {token} at row 1, column 3 .* vocab_size=97"):
        idle.generate(ids, max_new_tokens=2)


def test_row_of_padding_only(idle: Adapter) -> None:
    mask = torch.ones(3, 5, dtype=torch.int64)
    mask[1] = 0
    with pytest.raises(ShapeError, match="row 1 has no token"):
        idle.generate(prompts(3, 5), attention_mask=mask, max_new_tokens=2)


def test_truncation_that_was_asked_for(tiny: Any) -> None:
    """The first max_context_length tokens count, and generation continues right after them."""
    adapter = tiny.adapter(allow_input_truncation=True)
    ids = prompts(2, 30)
    options = {"max_new_tokens": 12, "do_sample": False}
    out = adapter.generate(ids, **options)
    expected = tiny.hf.generate(ids[:, :16], **options)
    assert out[:, :30].tolist() == ids.tolist()
    assert out[:, 30:].tolist() == expected[:, 16:].tolist()


def test_buckets_that_end_before_seq_len(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest graphs are the limit, whatever the lengths would allow."""
    adapter = tiny.adapter(enable_bucketing=True, token_generation_buckets=[20, 24])
    monkeypatch.setattr(adapter.neuron_model.runner, "step", None)
    message = r"16 new tokens is longer than max\(token_generation_buckets\)=24; .*at most 15"
    with pytest.raises(BucketError, match=message):
        adapter.generate(prompts(1, 10), max_new_tokens=16)


def test_fewer_rows_in_decode_than_in_the_cache(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = tiny.adapter(batch_size=2, max_batch_size=4)
    monkeypatch.setattr(adapter.neuron_model.runner, "step", None)
    with pytest.raises(BucketError, match="3 prompts do not fit batch_size=2"):
        adapter.generate(prompts(3, 4), max_new_tokens=2, repetition_penalty=2.0)

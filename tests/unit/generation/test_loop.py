"""The decode loop, step by step, over a model that only counts."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MaxLengthCriteria, StoppingCriteriaList

from nxdi.generation.ahead import Ahead, InTurn
from nxdi.generation.choosers import Chosen
from nxdi.generation.loop import Generated, decode_loop

PAD = 99


@dataclass
class CountingModel:
    """Records its calls; the chooser below makes row r generate 10 r + 1, 10 r + 2, ..."""

    max_context_length: int = 8
    prefill_again_at: int | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def neuron_config(self) -> SimpleNamespace:
        return SimpleNamespace(longest_prompt=self.max_context_length)

    def __call__(self, input_ids: Tensor, **inputs: Any) -> int:
        lists = {name: x.tolist() if isinstance(x, Tensor) else x for name, x in inputs.items()}
        self.calls.append({"input_ids": input_ids.tolist(), **lists})
        return len(self.calls)


class CountingChooser:
    def __init__(self) -> None:
        self.inputs = {"seeds": [4, 5]}

    def choose(self, input_ids: Tensor, output: Any) -> Chosen:
        tokens = 10 * torch.arange(len(input_ids)) + output
        return Chosen(tokens, logits=tokens[:, None] + 0.5, scores=tokens[:, None] + 0.25)


@dataclass
class Recorder:
    """A streamer that keeps what it is given."""

    got: list[Any] = field(default_factory=list)

    def put(self, value: Tensor) -> None:
        self.got.append(value.tolist())

    def end(self) -> None:
        self.got.append("end")


def stop_at(*num_new: int) -> StoppingCriteriaList:
    """Row r stops with its num_new[r]-th new token; prompts have 3 columns."""

    def stopped(input_ids: Tensor, scores: Any, **keywords: Any) -> Tensor:
        return torch.tensor(num_new) <= input_ids.shape[1] - 3

    return StoppingCriteriaList([stopped])


def run(model: CountingModel, done: Generated, mask: Tensor, **options: Any) -> list[list[int]]:
    options = {
        "chooser": CountingChooser(),
        "stopping": stop_at(3, 2),
        "pad_token_id": PAD,
        "starter": InTurn(),
        **options,
    }
    decode_loop(model, done, mask, **options)  # type: ignore[arg-type]  # stand-ins
    return done.input_ids[:, 3:].tolist()


@pytest.fixture
def ids() -> Tensor:
    return torch.tensor([[5, 6, 7], [0, 8, 9]])


@pytest.fixture
def mask() -> Tensor:
    return torch.tensor([[1, 1, 1], [0, 1, 1]])


def test_one_prefill_then_a_step_per_token(ids: Tensor, mask: Tensor) -> None:
    model = CountingModel()
    assert run(model, Generated(ids), mask) == [[1, 2, 3], [11, 12, PAD]]
    assert model.calls == [
        {"input_ids": ids.tolist(), "attention_mask": mask.tolist(), "seeds": [4, 5]},
        {"input_ids": [[1], [11]], "position_ids": [[3], [2]], "seeds": [4, 5]},
        {"input_ids": [[2], [12]], "position_ids": [[4], [3]], "seeds": [4, 5]},
    ]


def test_without_a_pad_token_finished_rows_go_on(ids: Tensor, mask: Tensor) -> None:
    tokens = run(CountingModel(), Generated(ids), mask, pad_token_id=None)
    assert tokens == [[1, 2, 3], [11, 12, 13]]


def test_one_token_needs_no_decode_step(ids: Tensor, mask: Tensor) -> None:
    model = CountingModel()
    assert run(model, Generated(ids), mask, stopping=stop_at(1, 1)) == [[1], [11]]
    assert len(model.calls) == 1


def test_a_cut_prompt_continues_where_it_was_cut(ids: Tensor, mask: Tensor) -> None:
    model = CountingModel(max_context_length=2)
    run(model, Generated(ids), mask)
    assert [call["position_ids"] for call in model.calls[1:]] == [[[2], [2]], [[3], [3]]]


def test_a_streamer_sees_what_is_returned(ids: Tensor, mask: Tensor) -> None:
    streamer = Recorder()
    run(CountingModel(), Generated(ids), mask, streamer=streamer)
    assert streamer.got == [[1, 11], [2, 12], [3, PAD], "end"]


@pytest.mark.parametrize("kept", ["logits", "scores"])
def test_only_what_is_asked_for_is_kept(kept: str, ids: Tensor, mask: Tensor) -> None:
    done = Generated(ids, **{kept: ()})
    run(CountingModel(), done, mask)
    other = {"logits": "scores", "scores": "logits"}[kept]
    assert getattr(done, other) is None
    offset = {"logits": 0.5, "scores": 0.25}[kept]
    assert [x.tolist() for x in getattr(done, kept)] == [
        [[step + offset], [10 + step + offset]] for step in (1, 2, 3)
    ]


AHEAD = {"starter": Ahead(), "pad_token_id": None}


def with_length(*num_new: int, longest: int = 5) -> StoppingCriteriaList:
    return StoppingCriteriaList([MaxLengthCriteria(3 + longest), *stop_at(*num_new)])


@pytest.mark.parametrize(("num_new", "num_calls"), [((2, 3), 4), ((5, 5), 5), ((9, 1), 5)])
def test_ahead_only_a_stop_that_nobody_knew_of_costs_a_step(
    num_new: tuple[int, int], num_calls: int, ids: Tensor, mask: Tensor
) -> None:
    in_turn, ahead = CountingModel(), CountingModel()
    stopping = with_length(*num_new)
    expected = run(in_turn, Generated(ids), mask, stopping=stopping, pad_token_id=None)
    assert run(ahead, Generated(ids), mask, stopping=stopping, **AHEAD) == expected
    assert len(ahead.calls) == num_calls
    assert ahead.calls[: len(in_turn.calls)] == in_turn.calls


def test_ahead_without_a_known_length_steps_take_turns(ids: Tensor, mask: Tensor) -> None:
    model = CountingModel()
    run(model, Generated(ids), mask, stopping=stop_at(2, 2), **AHEAD)
    assert len(model.calls) == 2


class MeetingModel(CountingModel):
    """Each decode step begins before the streamer has the token before, and ends after."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun, self.was_put = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, input_ids: Tensor, **inputs: Any) -> int:
        if self.calls:
            self.has_begun.release()
            assert self.was_put.acquire(timeout=60)
        return super().__call__(input_ids, **inputs)


@dataclass
class MeetingStreamer(Recorder):
    model: MeetingModel | None = None
    num_ahead: int = 0

    def put(self, value: Tensor) -> None:
        assert self.model is not None
        if len(self.got) < self.num_ahead:
            assert self.model.has_begun.acquire(timeout=60)
        super().put(value)
        self.model.was_put.release()


def test_ahead_a_step_runs_while_the_tokens_before_it_are_streamed(
    ids: Tensor, mask: Tensor
) -> None:
    model = MeetingModel()
    streamer = MeetingStreamer(model=model, num_ahead=3)
    stopping = with_length(9, 9, longest=4)
    tokens = run(model, Generated(ids), mask, streamer=streamer, stopping=stopping, **AHEAD)
    assert tokens == [[1, 2, 3, 4], [11, 12, 13, 14]]


def test_ahead_an_error_of_the_host_waits_for_the_step(ids: Tensor, mask: Tensor) -> None:
    model = CountingModel()

    class Broken(Recorder):
        def put(self, value: Tensor) -> None:
            raise OSError("the reader is gone")

    with pytest.raises(OSError, match="reader is gone"):
        run(model, Generated(ids), mask, streamer=Broken(), stopping=with_length(9, 9), **AHEAD)
    assert len(model.calls) == 2

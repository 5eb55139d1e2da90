"""Steps ahead against steps in turn: the same of everything, and a host that does not wait."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from fake_model import FakeModel, batcher, some_prompts
from nxdi.config import NeuronConfig, OnDeviceSamplingConfig
from nxdi.errors import ConfigError
from nxdi.generation import ContinuousBatcher, RequestOptions
from nxdi.generation.requests import Completion, Output
from nxdi.generation.steps import StepsAhead, StepsInTurn

DYNAMIC = OnDeviceSamplingConfig(dynamic=True)
LAYOUTS: dict[str, dict[str, Any]] = {
    "rows": {"blocks": None},
    "small pool": {"blocks": 17, "rows": 6},
    "small pool, prefixes": {"blocks": 17, "rows": 6, "shares_prefixes": True, "chunk": 5},
    "whole prompts": {"chunk": None},
    "LongRoPE": {"prefill_again_at": 12, "blocks": 17},
    "tokens chosen on the host": {"sampling": OnDeviceSamplingConfig()},
}


class AheadModel(FakeModel):
    async_mode = True


def some_options(draw: random.Random) -> RequestOptions:
    sampling: dict[str, Any] = {}
    if draw.random() < 0.5:
        sampling = {"do_sample": True, "temperature": 1.3, "top_k": draw.choice([0, 5])}
    return RequestOptions(
        max_new_tokens=draw.choice([1, 2, 9, 20]),
        seed=draw.randrange(99),
        stop=[
            chr(draw.randrange(48, 58)) + chr(draw.randrange(48, 58)),
            chr(draw.randrange(48, 68)),
        ],
        stop_token_ids=[draw.randrange(41)],
        logprobs=draw.choice([None, 0, 3]),
        ignore_eos=draw.random() < 0.5,
        **sampling,
    )


def run(
    model: FakeModel, tokenizer: PreTrainedTokenizerFast, seed: int
) -> tuple[dict[int, Completion], dict[int, list[Output]]]:
    """Requests that come at random times; some are cancelled before the first step after."""
    draw = random.Random(seed)
    of = batcher(
        model, tokenizer=tokenizer, generation_config=GenerationConfig(eos_token_id=[3, 30])
    )
    waiting = [(prompt, some_options(draw)) for prompt in some_prompts(seed, 30)]
    requests, outputs = {}, {}
    while waiting or of.num_requests:
        for _ in range(min(len(waiting), draw.choice([0, 1, 4]))):
            request = of.add(*waiting.pop(0))
            if request % 7 == 3:
                of.cancel(request)
            else:
                requests[request] = of._requests[request]
        for output in of.step():
            outputs.setdefault(output.request_id, []).append(output)
    assert of._blocks.num_free == of._blocks.num_blocks
    return {i: request.completion() for i, request in requests.items()}, outputs


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_everything_is_the_same(layout: str, seed: int, tokenizer: PreTrainedTokenizerFast) -> None:
    options = {
        "max_context_length": 20,
        "sampling": DYNAMIC,
        "output_logits": True,
        **LAYOUTS[layout],
    }
    in_turn = run(FakeModel(**options), tokenizer, seed)
    ahead = run(AheadModel(**options), tokenizer, seed)
    assert in_turn == ahead
    reasons = [completion.finish_reason for completion in in_turn[0].values()]
    assert {"stop", "length"} == set(reasons)


def test_a_stop_drops_what_was_computed_beyond_it() -> None:
    model = AheadModel()
    tokens = model.greedy([5, 6], 12)
    num_new = next(n for n in range(3, 12) if tokens[n] not in tokens[:n]) + 1
    of = batcher(model, generation_config=GenerationConfig(eos_token_id=tokens[num_new - 1]))
    of.add([5, 6], RequestOptions(max_new_tokens=12))
    (done,) = of.run().values()
    assert done == Completion(tokens[:num_new], "", [], "stop")
    assert len(model.calls) == num_new + 1
    assert of._blocks.num_free == of._blocks.num_blocks


@pytest.mark.parametrize("num_new", [1, 2, 5])
def test_a_length_is_known_beforehand(num_new: int) -> None:
    model = AheadModel()
    of = batcher(model)
    of.add([5, 6], RequestOptions(max_new_tokens=num_new))
    (done,) = of.run().values()
    assert done == Completion(model.greedy([5, 6], num_new), "", [], "length")
    assert len(model.calls) == num_new


def test_a_stopped_request_keeps_its_blocks_while_a_step_writes_them() -> None:
    model = AheadModel(blocks=40, block_size=4)
    tokens = model.greedy([5, 6], 12)
    of = batcher(model, generation_config=GenerationConfig(eos_token_id=tokens[0]))
    stops = of.add([5, 6])
    goes_on = of.add([7, 8], RequestOptions(max_new_tokens=12, ignore_eos=True))
    (stopped, _) = of.step()
    assert (stopped.request_id, stopped.finish_reason) == (stops, "stop")
    assert of._blocks.table(stops)
    of.step()
    with pytest.raises(ConfigError, match=f"sequence {stops} has no blocks"):
        of._blocks.table(stops)
    assert of.run()[goes_on].tokens == model.greedy([7, 8], 12)


def test_an_error_of_a_step_ahead_comes_with_the_next_step() -> None:
    model = AheadModel(fail_in=2)
    of = batcher(model)
    request = of.add([1], RequestOptions(max_new_tokens=4))
    first = [output.token for _ in range(2) for output in of.step()]
    with pytest.raises(RuntimeError, match="the device is gone"):
        of.step()
    assert of._requests[request].num_computed == 2
    assert [*first, *(o.token for o in of.stream(request))] == model.greedy([1], 4)


def test_an_error_of_a_step_that_nobody_waits_for() -> None:
    model = AheadModel(fail_in=1)
    of = batcher(model, generation_config=GenerationConfig(eos_token_id=model.greedy([1], 1)))
    of.add([1])
    (done,) = of.run().values()
    assert (len(done.tokens), done.finish_reason) == (1, "stop")
    assert of._blocks.num_free == of._blocks.num_blocks


def test_an_error_of_the_host_loses_only_its_own_output(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AheadModel()
    of = batcher(model, tokenizer=tokenizer)
    ids = [of.add([n], RequestOptions(max_new_tokens=4)) for n in (1, 2, 3)]
    of.step()

    def broken(*_: Any) -> str:
        monkeypatch.undo()
        raise OSError("no such character")

    monkeypatch.setattr(of._requests[ids[1]]._text, "push", broken)
    with pytest.raises(OSError, match="no such character"):
        of.step()
    done = of.run()
    assert [done[i].tokens for i in ids] == [model.greedy([n], 4) for n in (1, 2, 3)]
    assert of._blocks.num_free == of._blocks.num_blocks


class MeetingModel(AheadModel):
    """Each call but the first begins before the text of the one before is made, and ends after."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.has_begun, self.has_text = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        if self.calls:
            self.has_begun.release()
            assert self.has_text.acquire(timeout=60)
        return super().__call__(*args, **inputs)


def test_the_text_of_a_step_is_made_while_the_next_one_runs(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MeetingModel()
    of = batcher(model, tokenizer=tokenizer)
    request = of.add([1], RequestOptions(max_new_tokens=5))
    text = of._requests[request]._text
    assert text is not None
    push = text.push

    def meets(token: int) -> str:
        if len(of._requests[request].tokens) < 1 + 5:  # the last token has no step after it
            assert model.has_begun.acquire(timeout=60)
        found = push(token)
        model.has_text.release()
        return found

    monkeypatch.setattr(text, "push", meets)
    assert of.run()[request].tokens == model.greedy([1], 5)


def test_the_graph_must_choose() -> None:
    with pytest.raises(ConfigError, match="set on_device_sampling_config"):
        NeuronConfig(async_mode=True)


def test_a_real_model(tiny: Any) -> None:
    """Graphs made for steps in turn serve as well: the artefact is the same."""
    found, kinds = [], []
    for async_mode in (False, True):
        adapter = tiny.adapter(
            batch_size=2, on_device_sampling_config={"dynamic": True}, async_mode=async_mode
        )
        of = ContinuousBatcher(adapter.neuron_model)
        kinds.append(type(of._steps))
        prompts = [ids[mask.bool()] for ids, mask in zip(tiny.ids, tiny.mask, strict=True)]
        sampled = RequestOptions(max_new_tokens=20, do_sample=True, seed=3)
        ids = [of.add(prompt, sampled) for prompt in prompts]
        done = of.run()
        found.append([done[i] for i in ids])
    assert kinds == [StepsInTurn, StepsAhead]
    assert found[0] == found[1]


@pytest.mark.parametrize("do_sample", [False, True])
def test_generate_is_the_same(tiny: Any, do_sample: bool) -> None:
    """Also what a later call draws from torch's own generator."""
    found = []
    for async_mode in (False, True):
        adapter = tiny.adapter(
            on_device_sampling_config={"dynamic": True}, async_mode=async_mode, output_logits=True
        )
        torch.manual_seed(7)
        end = tiny.greedy()[1, 4].item()  # one row stops long before the others
        for options in ({}, {"eos_token_id": end}, {"repetition_penalty": 1.3}):
            tokens = adapter.generate(
                tiny.ids,
                attention_mask=tiny.mask,
                max_new_tokens=20,
                do_sample=do_sample,
                pad_token_id=0,
                **options,
            )
            found.append(tokens.tolist())
        stop = {"eos_token_id": list(range(97)), "pad_token_id": 0}
        found.append(adapter.generate(tiny.ids, attention_mask=tiny.mask, **stop).tolist())
        found.append(torch.rand(1).tolist())
    half = len(found) // 2
    assert found[:half] == found[half:]

"""What requests bring: tokens, ends, text, logarithms of probabilities; and how they sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from fake_model import FakeModel, batcher
from nxdi.config import OnDeviceSamplingConfig
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.generation import RequestOptions
from nxdi.generation.requests import Completion

pytestmark = pytest.mark.usefixtures("either_steps")

GREEDY = RequestOptions(max_new_tokens=12)


def test_as_many_tokens_as_fit() -> None:
    model = FakeModel(seq_len=30, rows=2)
    of = batcher(model)
    of.add([1, 2, 3])
    (done,) = of.run().values()
    assert done == Completion(model.greedy([1, 2, 3], 28), "", [], "length")


def test_end_of_sequence() -> None:
    model = FakeModel()
    tokens = model.greedy([5, 6], 12)
    end = tokens[7]
    first = tokens.index(end) + 1
    for eos in (end, [end, 1000]):
        of = batcher(model, generation_config=GenerationConfig(eos_token_id=eos))
        stops = of.add([5, 6], RequestOptions(max_new_tokens=12))
        ignores = of.add([5, 6], RequestOptions(max_new_tokens=12, ignore_eos=True))
        own = of.add(
            [5, 6], RequestOptions(max_new_tokens=12, ignore_eos=True, stop_token_ids=[tokens[2]])
        )
        done = of.run()
        assert done[stops] == Completion(tokens[:first], "", [], "stop")
        assert done[ignores] == Completion(tokens, "", [], "length")
        assert done[own].tokens == tokens[: tokens.index(tokens[2]) + 1]


def test_text_comes_in_pieces(tokenizer: PreTrainedTokenizerFast) -> None:
    model = FakeModel()
    of = batcher(model, tokenizer=tokenizer)
    prompt = tokenizer.encode("123")
    expected = tokenizer.decode(model.greedy(prompt, 10))
    of.add("123", RequestOptions(max_new_tokens=10))
    outputs = list(of.stream(of.add(prompt, RequestOptions(max_new_tokens=10))))
    assert "".join(output.text for output in outputs) == expected
    assert of.run()[0].text == expected


def test_stop_strings(tokenizer: PreTrainedTokenizerFast) -> None:
    """Found across tokens, cut from the text, and no part of them is handed out before."""
    model = FakeModel()
    of = batcher(model, tokenizer=tokenizer)
    text = tokenizer.decode(model.greedy([1], 20))
    stop, cut = text[6:9], text.index(text[6:9])
    ids = [
        of.add([1], RequestOptions(max_new_tokens=20, stop=stops))
        for stops in (stop, ["nowhere", stop], [stop + "!", text[9:11]])
    ]
    seen = dict.fromkeys(ids, "")
    finished = {}
    while of.num_requests:
        for output in of.step():
            seen[output.request_id] += output.text
            finished[output.request_id] = output.finish_reason
            assert text.startswith(seen[output.request_id])
    assert [seen[i] for i in ids] == [text[:cut], text[:cut], text[: text.index(text[9:11])]]
    assert [finished[i] for i in ids] == ["stop"] * 3


@pytest.mark.parametrize(
    ("prompt", "options"), [("text", RequestOptions()), ([1], RequestOptions(stop="x"))]
)
def test_text_needs_a_tokenizer(prompt: Any, options: RequestOptions) -> None:
    with pytest.raises(ConfigError, match="give ContinuousBatcher"):
        batcher(FakeModel()).add(prompt, options)


def test_logprobs() -> None:
    model = FakeModel()
    of = batcher(model)
    plain = of.add([3, 1], RequestOptions(max_new_tokens=4))
    asked = of.add([3, 1], RequestOptions(max_new_tokens=4, logprobs=2))
    alone = of.add([3, 1], RequestOptions(max_new_tokens=4, logprobs=0))
    done = of.run()
    assert done[plain].logprobs == []
    tokens = [3, 1]
    for new, reported, own in zip(
        done[asked].tokens, done[asked].logprobs, done[alone].logprobs, strict=True
    ):
        values = torch.log_softmax(model.expected_logits(tokens), dim=-1)
        assert list(reported.top) == values.topk(2).indices.tolist()
        assert list(reported.top.values()) == pytest.approx(values.topk(2).values.tolist())
        assert reported.token == own.token == pytest.approx(float(values[new]))
        assert own.top == {}
        tokens.append(new)


SAMPLED = RequestOptions(max_new_tokens=12, do_sample=True, temperature=1.2, top_p=0.9, seed=11)
DYNAMIC = OnDeviceSamplingConfig(dynamic=True)


@pytest.mark.parametrize(
    "outputs",
    [
        {},
        {"sampling": DYNAMIC},
        {"sampling": OnDeviceSamplingConfig(do_sample=True, top_k=3), "output_logits": True},
        {"sampling": OnDeviceSamplingConfig(), "output_logits": True},
    ],
)
def test_a_seed_decides_the_tokens_wherever_they_are_sampled(outputs: dict[str, Any]) -> None:
    model = FakeModel(**outputs)
    of = batcher(model)
    ids = [of.add([4, 2], options) for options in (SAMPLED, GREEDY, SAMPLED)]
    done = of.run()
    sampled, greedy = model.expected([4, 2], 12, SAMPLED), model.greedy([4, 2], 12)
    assert sampled != greedy
    assert [done[i].tokens for i in ids] == [sampled, greedy, sampled]


def test_seeds_of_their_own_come_from_torch() -> None:
    def run_twice() -> list[list[int]]:
        of = batcher(FakeModel())
        for _ in range(2):
            of.add([4, 2], RequestOptions(max_new_tokens=12, do_sample=True))
        return [done.tokens for done in of.run().values()]

    torch.manual_seed(0)
    first = run_twice()
    assert first[0] != first[1]
    torch.manual_seed(0)
    assert run_twice() == first


@pytest.mark.parametrize("options", [SAMPLED, RequestOptions(logprobs=0)])
def test_what_a_greedy_graph_without_logits_cannot_do(options: RequestOptions) -> None:
    of = batcher(FakeModel(sampling=OnDeviceSamplingConfig()))
    with pytest.raises(UnsupportedError, match="output_logits=True"):
        of.add([1], options)
    of.add([1], GREEDY)
    assert of.run()[0].tokens == FakeModel().greedy([1], 12)

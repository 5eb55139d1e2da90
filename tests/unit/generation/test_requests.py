from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from nxdi.errors import ConfigError
from nxdi.generation.requests import Completion, Logprobs, Output, Request, RequestOptions
from nxdi.generation.streaming import TextStream


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"max_new_tokens": 1.5}, "max_new_tokens=1.5 must be an integer"),
        ({"max_new_tokens": True}, "max_new_tokens=True must be an integer"),
        ({"logprobs": -1}, "logprobs=-1 must be at least 0"),
        ({"seed": "x"}, "seed='x' must be an integer"),
        ({"stop_token_ids": [1, -1]}, "stop_token_ids=-1 must be at least 0"),
        ({"stop_token_ids": ["</s>"]}, "stop_token_ids='</s>' must be an integer"),
        ({"stop": ""}, "none of them empty"),
        ({"stop": ["a", ""]}, "none of them empty"),
        ({"stop": [1]}, "one or more strings"),
        ({"do_sample": True, "temperature": -1.0}, "temperature=-1.0"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature=nan"),
        ({"do_sample": True, "top_p": 0.0}, "top_p=0.0"),
        ({"do_sample": True, "top_k": -2}, "top_k=-2"),
        ({"do_sample": True, "top_k": 2.5}, "top_k=2.5 must be of type int"),
        ({"do_sample": "yes"}, "do_sample='yes' must be of type bool"),
        ({"temperature": 0.5}, "temperature=0.5 has no effect .* do_sample=True"),
        ({"top_k": 5}, "top_k=5 has no effect"),
        ({"top_p": 0.9}, "top_p=0.9 has no effect"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RequestOptions(**options)


def test_sampling_params() -> None:
    assert RequestOptions().sampling_params == (1, 1.0, 1.0)
    options = RequestOptions(do_sample=True, temperature=0.5, top_k=7, top_p=0.9)
    assert options.sampling_params == (7, 0.9, 0.5)


def test_one_stop_string_or_several() -> None:
    assert RequestOptions().stop_strings == ()
    assert RequestOptions(stop="ab").stop_strings == ("ab",)
    assert RequestOptions(stop=["a", "b"]).stop_strings == ("a", "b")


def request(max_new_tokens: int = 3, text: TextStream | None = None) -> Request:
    """A prompt of two tokens that token 9 ends."""
    return Request(
        5,
        [1, 2],
        RequestOptions(),
        max_new_tokens=max_new_tokens,
        seed=0,
        stop_token_ids=frozenset([9]),
        text=text,
    )


def put(one: Request, token: int, logprobs: Logprobs | None = None) -> None:
    one.take(token)
    one.publish(token, logprobs)


def test_the_length_ends_a_request() -> None:
    one = request()
    for token in (3, 4, 5):
        assert one.finish_reason is None
        put(one, token)
    assert list(one.unread) == [Output(5, 3), Output(5, 4), Output(5, 5, finish_reason="length")]
    assert one.completion() == Completion([3, 4, 5], "", [], "length")


def test_a_stop_token_ends_a_request() -> None:
    one, logprobs = request(), Logprobs(-1.0, {9: -1.0})
    put(one, 9, logprobs)
    assert list(one.unread) == [Output(5, 9, "", logprobs, "stop")]
    assert one.completion() == Completion([9], "", [logprobs], "stop")


def test_a_stop_token_at_the_last_place() -> None:
    one = request(max_new_tokens=1)
    put(one, 9)
    assert one.finish_reason == "stop"


def test_the_text_is_that_of_the_tokens_before_the_stop_token(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    one = request(text=TextStream(tokenizer, stop=["4x"]))
    put(one, 3)
    put(one, 4)  # "4" may be the start of "4x"
    put(one, 9)
    assert [output.text for output in one.unread] == ["3", "", "4"]
    assert one.completion().text == "34"


def test_pending_tokens() -> None:
    one = request()
    assert one.num_pending == 2
    one.num_computed = 2
    put(one, 3)
    assert one.num_pending == 1

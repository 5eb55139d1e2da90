"""`vllm serve` on nxdi's graphs, through openai's client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from vllm_plugin.serving import NAME, ONE_THREAD, Server, serve

OPTIONS = (
    *("--dtype", "float32", "--max-model-len", "128", "--max-num-seqs", "4"),
    *("--additional-config", '{"override_neuron_config": {"backend": "eager"}}'),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    # A random model would fill its answers with blanks.
    *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
)
COLOURS = {"choice": ["red", "green", "blue"]}
SCHEMA = {
    "type": "object",
    "properties": {"ready": {"type": "boolean"}},
    "required": ["ready"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(
        model_dir, tmp_path_factory.mktemp("log") / "server.log", OPTIONS, ONE_THREAD
    ) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return server.client()


def complete(client: Any, prompt: str = "Hello", **options: Any) -> Any:
    asked = {"max_tokens": 12, "temperature": 0, **options}
    return client.completions.create(model=NAME, prompt=prompt, **asked).choices[0]


def chat(client: Any, **options: Any) -> Any:
    messages = [{"role": "user", "content": "Hello"}]
    asked = {"max_tokens": 12, "temperature": 0, **options}
    return client.chat.completions.create(model=NAME, messages=messages, **asked).choices[0]


def test_the_model_is_listed(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [NAME]


def test_a_stream_has_the_text_of_the_whole(client: Any) -> None:
    whole = complete(client)
    assert whole.finish_reason == "length"
    parts = client.completions.create(
        model=NAME, prompt="Hello", max_tokens=12, temperature=0, stream=True
    )
    assert "".join(part.choices[0].text for part in parts) == whole.text
    messages = [{"role": "user", "content": "Hello"}]
    chunks = client.chat.completions.create(
        model=NAME, messages=messages, max_tokens=12, temperature=0, stream=True
    )
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == chat(client).message.content


def test_log_probabilities(client: Any) -> None:
    content = chat(client, logprobs=True, top_logprobs=2).logprobs.content
    assert len(content) == 12
    for token in content:
        best, second = (top.logprob for top in token.top_logprobs)
        assert token.logprob == best > second  # greedy: its own is the likeliest
    assert len(complete(client, logprobs=0).logprobs.token_logprobs) == 12


def test_a_seed_decides_the_text(client: Any) -> None:
    texts = [complete(client, temperature=1.5, seed=seed).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_stop_strings_end_the_text(client: Any) -> None:
    text = complete(client).text
    stop = text[4:6]
    stopped = complete(client, stop=[stop])
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"


def test_many_answers(client: Any) -> None:
    answers = client.completions.create(
        model=NAME, prompt="Hello", max_tokens=8, temperature=1.5, n=5
    )
    assert sorted(choice.index for choice in answers.choices) == [0, 1, 2, 3, 4]


def test_structured_outputs(client: Any) -> None:
    chosen = chat(client, extra_body={"structured_outputs": COLOURS})
    assert chosen.message.content in COLOURS["choice"]
    form = {"type": "json_schema", "json_schema": {"name": "state", "schema": SCHEMA}}
    answered = json.loads(chat(client, response_format=form, max_tokens=60).message.content)
    assert isinstance(answered["ready"], bool)


def test_a_tool_is_called(client: Any) -> None:
    report = {"name": "report", "parameters": SCHEMA, "strict": True}
    tool = {"type": "function", "function": report}
    choice = {"type": "function", "function": {"name": "report"}}
    (call,) = chat(client, tools=[tool], tool_choice=choice, max_tokens=100).message.tool_calls
    assert call.function.name == "report"
    assert set(json.loads(call.function.arguments)) == {"ready"}


def test_what_is_wrong_is_refused_and_the_server_goes_on(client: Any, server: Server) -> None:
    from openai import BadRequestError

    before = complete(client).text
    for options in ({"max_tokens": 10_000}, {"temperature": -1}, {"top_p": 2.0}, {"n": 0}):
        with pytest.raises(BadRequestError):
            complete(client, **options)
    with pytest.raises(BadRequestError, match="128"):
        complete(client, prompt="x" * 500)
    assert complete(client).text == before


def test_metrics_count_tokens(client: Any, server: Server) -> None:
    before = server.metric("vllm:generation_tokens_total")
    complete(client, max_tokens=9)
    assert server.metric("vllm:generation_tokens_total") == before + 9


def test_a_client_that_leaves_gives_its_cache_back(server: Server) -> None:
    body = {"model": NAME, "prompt": "Hello", "max_tokens": 100, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())
    for _ in range(200):
        running = server.metric("vllm:num_requests_running")
        if not running and not server.metric("vllm:kv_cache_usage_perc"):
            return
        time.sleep(0.1)
    pytest.fail("the request of a client that has left still runs")

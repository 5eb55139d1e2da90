"""The web server example, called as a server calls it; needs fastapi, which nothing else does."""

from __future__ import annotations

import asyncio
import importlib
import json
import string
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from fake_model import VOCAB_SIZE, FakeModel, batcher
from nxdi.generation import ContinuousBatcher

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def serve() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("serve_fastapi")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One digit or letter per token."""
    characters = (string.digits + string.ascii_letters)[:VOCAB_SIZE]
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(characters)}, []))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture
def of(tokenizer: PreTrainedTokenizerFast) -> ContinuousBatcher:
    return batcher(FakeModel(seq_len=2000, blocks=500), tokenizer=tokenizer)


async def post(
    app: Any, body: dict[str, Any], leave_after: int | None = None
) -> list[dict[str, Any]]:
    """The messages a client gets; it goes away after some of them."""
    got: list[dict[str, Any]] = []
    has_left, sent = asyncio.Event(), [False]

    async def receive() -> dict[str, Any]:
        if not sent[0]:
            sent[0] = True
            return {"type": "http.request", "body": json.dumps(body).encode()}
        await has_left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        got.append(message)
        if len(got) == leave_after:
            has_left.set()

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/completions", "query_string": b""}
    await app({**scope, "asgi": {"spec_version": "2.3"}, "headers": headers}, receive, send)
    return got


def text_of(messages: list[dict[str, Any]]) -> str:
    bodies = b"".join(message.get("body", b"") for message in messages[1:]).decode()
    lines = [line.removeprefix("data: ") for line in bodies.split("\n") if line]
    return "".join(json.loads(line)["text"] for line in lines)


def test_texts_stream_side_by_side(
    serve: ModuleType, of: ContinuousBatcher, tokenizer: PreTrainedTokenizerFast
) -> None:
    app, model = serve.make_app(of), of.model

    async def three() -> list[list[dict[str, Any]]]:
        prompts = ("1", "23", "4567")
        bodies = [{"prompt": prompt, "options": {"max_new_tokens": 9}} for prompt in prompts]
        return await asyncio.gather(*(post(app, body) for body in bodies))

    for messages, prompt in zip(asyncio.run(three()), ("1", "23", "4567"), strict=True):
        assert messages[0]["status"] == 200
        expected = model.greedy(tokenizer.encode(prompt), 9)
        assert text_of(messages) == tokenizer.decode(expected)


def test_leaving_cancels(serve: ModuleType, of: ContinuousBatcher) -> None:
    sampled = {"do_sample": True, "temperature": 0.8, "seed": 3, "stop": ["#"]}
    asyncio.run(post(serve.make_app(of), {"prompt": "1", "options": sampled}, leave_after=4))
    assert of.num_requests == 0
    assert len(of.model.calls) < 1000  # of the 2000 that the request might have had
    of.step()
    assert of._blocks.num_free == of._blocks.num_blocks


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"max_new_tokens": 2001}, 400, "ask for at most"),
        ({"temperature": 0.5}, 422, "set do_sample=True"),
        ({"max_new_tokens": "many"}, 422, "valid integer"),
    ],
)
def test_a_bad_request(
    serve: ModuleType,
    of: ContinuousBatcher,
    options: dict[str, Any],
    status: int,
    message: str,
) -> None:
    messages = asyncio.run(post(serve.make_app(of), {"prompt": "1", "options": options}))
    assert messages[0]["status"] == status
    assert message in messages[1]["body"].decode()
    assert of.num_requests == 0

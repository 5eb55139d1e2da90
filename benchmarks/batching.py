"""Batching on the cpu backend, as ratios in one run: throughput, prefixes found, float8 caches.

    python benchmarks/batching.py

Takes SmolLM2-135M. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from fetch_smollm2 import fetch_smollm2
from measure import Check, seconds, show

TEXT = Path(__file__).parents[1] / "README.md"  # any English text of some thousand tokens
AT_ONCE, NUM_REQUESTS = 8, 24
PROMPT_LEN, SHARED = 1024, 0.9
ROUNDS = 3
PAGED = {"is_block_kv_layout": True, "pa_block_size": 32, "torch_dtype": "float32"}


def requests(vocab_size: int) -> list[tuple[list[int], int]]:
    """Prompts of mixed lengths, and how many tokens each asks for: as in chats, rather more."""
    rng = random.Random(0)
    lengths = [rng.randrange(16, 240) for _ in range(NUM_REQUESTS)]
    return [
        ([rng.randrange(10, vocab_size) for _ in range(length)], rng.randrange(64, 256))
        for length in lengths
    ]


def throughput(folder: Path) -> list[Check]:
    """Requests AT_ONCE at a time against one after the other, on graphs of their batch sizes.

    The first AT_ONCE requests alone say what it is worth when none follow: rows fall idle as
    requests end.
    """
    import nxdi
    from nxdi.generation import ContinuousBatcher, RequestOptions

    lengths = {"seq_len": 512, "max_context_length": 256, "enable_bucketing": True}
    options = {**PAGED, **lengths, "ctx_batch_size": 1}
    rates: dict[tuple[int, int], float] = {}
    for batch_size in (1, AT_ONCE):
        # When few are left, a graph of fewer rows runs them.
        batches = [size for size in (2, 4) if size < batch_size]
        model = nxdi.AutoModelForCausalLM.from_pretrained(
            folder, batch_size=batch_size, token_generation_batches=batches or None, **options
        )
        for count in (AT_ONCE, NUM_REQUESTS):
            wanted = requests(model.config.vocab_size)[:count]
            batcher = ContinuousBatcher(model)
            for prompt, new in wanted:
                batcher.add(prompt, RequestOptions(max_new_tokens=new, ignore_eos=True))
            rates[batch_size, count] = sum(new for _, new in wanted) / seconds(batcher.run)
            rate = rates[batch_size, count]
            print(f"  {count} requests, {batch_size} at a time: {rate:.1f} new tokens/s")
    print(f"  {AT_ONCE} requests at once: {rates[AT_ONCE, AT_ONCE] / rates[1, AT_ONCE]:.2f}x")
    ratio = rates[AT_ONCE, NUM_REQUESTS] / rates[1, NUM_REQUESTS]
    name = f"{NUM_REQUESTS} requests, {AT_ONCE} at a time, against one at a time"
    return [Check(name, ratio, 2.5)]


def prefix_hit(folder: Path) -> list[Check]:
    """Time to first token of a prompt that shares most of its tokens with an earlier one."""
    import nxdi
    from nxdi.generation import ContinuousBatcher, RequestOptions

    model = nxdi.AutoModelForCausalLM.from_pretrained(
        folder,
        batch_size=2,
        ctx_batch_size=1,
        seq_len=PROMPT_LEN + 64,
        max_context_length=PROMPT_LEN,
        enable_bucketing=True,
        context_encoding_buckets=[128, PROMPT_LEN],
        token_generation_buckets=[PROMPT_LEN + 64],
        is_prefix_caching=True,
        **PAGED,
    )
    batcher = ContinuousBatcher(model)
    rng = random.Random(1)

    def some(count: int) -> list[int]:
        return [rng.randrange(10, model.config.vocab_size) for _ in range(count)]

    def first_token(prompt: list[int]) -> float:
        batcher.add(prompt, RequestOptions(max_new_tokens=1, ignore_eos=True))
        return seconds(batcher.run)

    num_shared = int(PROMPT_LEN * SHARED)
    cold, warm = [], []
    for _ in range(ROUNDS):
        prompt = some(PROMPT_LEN)
        cold.append(first_token(prompt))
        warm.append(first_token(prompt[:num_shared] + some(PROMPT_LEN - num_shared)))
    print(f"  first token of {PROMPT_LEN}: {min(cold):.3f} s, with a prefix {min(warm):.3f} s")
    name = f"first token, {SHARED:.0%} of {PROMPT_LEN} tokens found, against none"
    return [Check(name, min(cold) / min(warm), 4)]


def float8_cache(folder: Path) -> list[Check]:
    """How often the likeliest token is the same on the same text, and the bytes of the cache."""
    import torch
    from transformers import AutoTokenizer

    import nxdi

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer.encode(TEXT.read_text(encoding="utf-8")))[:257]
    likeliest, num_bytes = {}, {}
    options: dict[str, Any] = {"seq_len": 512, "max_context_length": 256, "torch_dtype": "float32"}
    for name, more in (("float32", {}), ("float8", {"kv_cache_quant": True})):
        model = nxdi.AutoModelForCausalLM.from_pretrained(folder, backend="cpu", **options, **more)
        rows = [model(ids[None, :1]).logits[0, -1].argmax()]
        for place in range(1, len(ids) - 1):
            step = model(ids[None, place : place + 1], position_ids=torch.tensor([[place]]))
            rows.append(step.logits[0, -1].argmax())
        likeliest[name] = torch.stack(rows)
        num_bytes[name] = sum(cache.nbytes for cache in model.runner.executables[0].caches)
    agreement = (likeliest["float8"] == likeliest["float32"]).float().mean().item()
    return [
        Check("float8 cache: same likeliest token as float32", agreement, 0.95, unit=""),
        Check(
            "float8 cache: bytes against bfloat16",
            num_bytes["float8"] / (num_bytes["float32"] / 2),
            0.5,
            at_least=False,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the checks to this file")
    arguments = parser.parse_args()
    folder = fetch_smollm2()
    checks = [*throughput(folder), *prefix_hit(folder), *float8_cache(folder)]
    met = show(checks)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(check) for check in checks], indent=1))
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()

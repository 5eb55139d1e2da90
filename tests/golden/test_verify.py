"""A verify step gives what decoding its tokens one by one gives, and leaves no trace of wrong ones.

Rows are verified with random numbers of right and wrong tokens, so that the wrong ones of one step
lie in the cache when the next one starts.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from golden.parity import Reference, check_logits, load
from tiny_models import VOCAB_SIZE

Get = Callable[[str], Reference]

LENGTHS = (17, 1, 33)  # of the prompts in one batch
PAGED = {"is_block_kv_layout": True, "pa_block_size": 8}


def walk(reference: Reference, num_verified: int, tp_degree: int = 1, **options: Any) -> None:
    """Follow the reference in verify steps, and in a decode step now and then."""
    app = load(reference, tp_degree, speculation_length=num_verified, **options)
    rng = random.Random(num_verified)
    ids, mask = reference.batch(LENGTHS, "right")
    app(ids, attention_mask=mask)
    done = dict.fromkeys(range(len(LENGTHS)), 1)  # new tokens; the last is not in the cache yet
    while rows := [row for row, count in done.items() if count < 32]:
        rng.shuffle(rows)
        width = 1 if rng.random() < 0.2 else num_verified
        tokens = torch.zeros(len(rows), width, dtype=torch.int32)
        places = torch.full_like(tokens, -1)
        right = []
        for i, row in enumerate(rows):
            truth = reference.tokens[LENGTHS[row]].tolist()[done[row] - 1 :]
            count = min(rng.randint(1, width), len(truth))
            # At least one wrong token behind the right ones, where there is room.
            num_right = rng.randint(1, count)
            wrong = [(token + 1) % VOCAB_SIZE for token in truth[num_right:count]]
            tokens[i, :count] = torch.tensor(truth[:num_right] + wrong)
            start = LENGTHS[row] + done[row] - 1
            places[i, :count] = torch.arange(start, start + count)
            right.append(num_right)
        seq_ids = torch.tensor(rows, dtype=torch.int32)
        place = {"seq_ids": seq_ids}
        if "is_block_kv_layout" in options:
            place = {"block_table": torch.arange(36, dtype=torch.int32).view(3, 12)[seq_ids.long()]}
        step = app if width == 1 else app.verify
        logits = step(tokens, position_ids=places, **place).logits
        for i, row in enumerate(rows):
            first = done[row]
            expected = reference.logits[LENGTHS[row]][first : first + right[i]]
            check_logits(logits[i, : len(expected)], expected)
            done[row] += right[i]


@pytest.mark.parametrize("num_verified", [2, 5, 8])
@pytest.mark.parametrize("name", ["llama", "mistral", "llama4", "gpt_oss"])
def test_wrong_tokens_leave_no_trace(name: str, num_verified: int, reference_of: Get) -> None:
    walk(reference_of(name), num_verified)


@pytest.mark.parametrize("options", [PAGED, {"kv_cache_quant": False, "async_mode": False}])
def test_in_blocks(options: dict[str, Any], reference_of: Get) -> None:
    walk(reference_of("mistral"), 4, tp_degree=2, **options)


@pytest.mark.slow
@pytest.mark.parametrize("tp_degree", [1, 2])
@pytest.mark.parametrize(
    "name", ["gemma2", "gemma3", "gpt2", "mixtral", "qwen3_moe", "cohere2", "olmoe", "dbrx", "phi3"]
)
def test_in_other_families(name: str, tp_degree: int, reference_of: Get) -> None:
    for num_verified in range(1, 9):
        walk(reference_of(name), num_verified, tp_degree)

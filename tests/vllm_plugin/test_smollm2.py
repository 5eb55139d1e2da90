"""A real model through vLLM: 32 prompts in one call, token for token those of transformers."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from golden.test_smollm2 import EXAMPLES, PROMPTS
from vllm_plugin.test_offline import continue_greedily, params, run, tokens_of

NUM_NEW = 16
OTHERS = [f"{first} {second}" for first, second in zip(PROMPTS[:12], PROMPTS[8:20], strict=True)]
# So many that no prefix is given up before the second pass.
BLOCKS: dict[str, Any] = {
    "block_size": 8,
    "enable_prefix_caching": True,
    "num_gpu_blocks_override": 400,
}
CHUNKS: dict[str, Any] = {"enable_chunked_prefill": True, "max_num_batched_tokens": 64}
LAYOUTS: dict[str, dict[str, Any]] = {
    "rows": {},
    "blocks": {"neuron": {"is_block_kv_layout": True}, "block_size": 8},
    "prefixes": BLOCKS,
    "chunks": CHUNKS,
    "chunks of prefixes": {**BLOCKS, **CHUNKS},
}


@pytest.fixture(scope="module")
def folder() -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        from fetch_smollm2 import fetch_smollm2

        found: Path = fetch_smollm2()
    return found


@pytest.fixture(scope="module")
def expected(folder: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts as tokens, and what transformers answers to each alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in [*PROMPTS, *OTHERS]]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    answers = [continue_greedily(model, prompt, NUM_NEW) for prompt in prompts]
    del model
    gc.collect()
    return prompts, answers


@pytest.mark.slow
@pytest.mark.parametrize("tp_degree", [1, 2])
@pytest.mark.parametrize("max_num_seqs", [1, 4, 16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_32_prompts(
    make_llm: Any,
    folder: Path,
    expected: tuple[list[list[int]], list[list[int]]],
    layout: str,
    max_num_seqs: int,
    tp_degree: int,
) -> None:
    ranks = {"tensor_parallel_size": tp_degree}
    llm = make_llm(folder, max_num_seqs=max_num_seqs, **ranks, **LAYOUTS[layout])
    check_32_prompts(llm, *expected)
    if "prefixes" in layout:
        found = check_32_prompts(llm, *expected)
        assert sum(found) > 0


@pytest.mark.slow
def test_32_prompts_compiled(
    make_llm: Any, folder: Path, expected: tuple[list[list[int]], list[list[int]]]
) -> None:
    check_32_prompts(make_llm(folder, neuron={"backend": "cpu"}), *expected)


def check_32_prompts(llm: Any, prompts: list[list[int]], answers: list[list[int]]) -> list[int]:
    """Returns: how many tokens of each prompt were found in the cache."""
    assert len(prompts) == 32
    outputs = run(llm, prompts, params(max_tokens=NUM_NEW, ignore_eos=True))
    assert tokens_of(outputs) == answers
    return [output.num_cached_tokens for output in outputs]

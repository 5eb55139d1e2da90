"""A real model against transformers: SmolLM2-135M-Instruct in float32, compiled, 20 prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
NEW_TOKENS = 64
PROMPTS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain photosynthesis to a child.",
    "List three uses of copper.",
    "def fibonacci(n):",
    "The quick brown fox",
    "Translate to German: good morning, my friend.",
    "Who wrote Hamlet, and when?",
    "Once upon a time, in a village by the river,",
    "2 + 2 * 3 =",
    "Summarise the plot of Romeo and Juliet in two sentences.",
    "The three laws of thermodynamics are",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "SELECT name FROM users WHERE",
    "Dear Sir or Madam,",
    "How do I sort a list in Python?",
    "The largest planet of the solar system is",
    "Tell me a joke about computers.",
    "In 1969, Neil Armstrong",
]


@pytest.mark.slow
def test_greedy_tokens_equal_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from fetch_smollm2 import fetch_smollm2
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import nxdi
    from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter

    folder = fetch_smollm2()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = HuggingFaceGenerationAdapter(
        nxdi.AutoModelForCausalLM.from_pretrained(
            folder, seq_len=256, torch_dtype="float32", enable_bucketing=True, backend="cpu"
        )
    )
    distinct = set()
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        arguments = {
            **inputs,
            "max_new_tokens": NEW_TOKENS,
            "do_sample": False,
            "eos_token_id": None,
        }
        expected = reference.generate(**arguments, pad_token_id=0)
        assert torch.equal(ours.generate(**arguments, pad_token_id=0), expected), prompt
        distinct.update(expected[0].tolist())
    # The reference itself varies, so that the comparison can fail.
    assert len(distinct) > 200
    assert len(PROMPTS) == 20

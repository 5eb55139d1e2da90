"""Quantized weights on the cpu backend against float32, in one run: speed, memory, accuracy.

    python benchmarks/quantization.py

Takes SmolLM2-135M: int8 with a scale per channel, the tied embedding and head included. Run it on a
quiet machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from fetch_smollm2 import fetch_smollm2
from measure import Check, alternate, seconds, show
from transformers import AutoTokenizer

import nxdi
from golden.test_smollm2 import PROMPTS
from nxdi.tools.quantization import perplexity, quantize_folder

DOCS = Path(__file__).parents[1] / "docs"  # English text
NUM_TOKENS = 10_000
ROWS = 4
ROUNDS, STEPS = 5, 64
ANSWER = 64  # tokens of each answer that is compared
INT8: dict[str, Any] = {"quantization_type": "per_channel_symmetric"}
DTYPES = {"float32": "float32", "int8": "bfloat16"}  # of what is not quantized


def load(folder: Path, dtype: str, batch_size: int) -> Any:
    return nxdi.AutoModelForCausalLM.from_pretrained(
        folder,
        backend="cpu",
        torch_dtype=dtype,
        batch_size=batch_size,
        seq_len=256 if batch_size == 1 else 512,
        max_context_length=32,
    )


def decode_rate(model: Any) -> float:
    """Tokens per second of decoding one row."""
    ids = torch.arange(10, 26)[None].int()
    model(ids)

    def run() -> None:
        for place in range(16, 16 + STEPS):
            model(ids[:, :1], position_ids=torch.tensor([[place]], dtype=torch.int32))

    return STEPS / seconds(run)


def answers(
    model: Any, prompts: list[list[int]], forced: torch.Tensor | None = None
) -> torch.Tensor:
    """The likeliest token at each step of the answers [T, B]; `forced` are answers to follow."""
    longest = max(map(len, prompts))
    ids, mask = torch.zeros(2, len(prompts), longest, dtype=torch.int32)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)], mask[row, : len(prompt)] = torch.tensor(prompt), 1
    found = [model(ids, attention_mask=mask).logits[:, 0].argmax(-1)]
    for step in range(ANSWER - 1):
        followed = found[-1] if forced is None else forced[step]
        positions = mask.sum(1, keepdim=True) + step
        output = model(followed[:, None].int(), position_ids=positions.int())
        found.append(output.logits[:, 0].argmax(-1))
    return torch.stack(found)


def weight_bytes(model: Any) -> int:
    tensors = model.rank_weights((0,))[0].values()
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.parse_args()
    folder = fetch_smollm2()
    text = "\n".join(file.read_text(encoding="utf-8") for file in sorted(DOCS.glob("*.md")))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(text)["input_ids"][:NUM_TOKENS]
    with tempfile.TemporaryDirectory() as work:
        report = quantize_folder(folder, Path(work) / "int8", **INT8)
        print(f"  largest error of a layer: {report.worst.relative:.2%}, {report.worst.name}")
        folders = {"float32": folder, "int8": Path(work) / "int8"}
        single = {name: load(path, DTYPES[name], 1) for name, path in folders.items()}
        rates = alternate(
            {name: lambda model=model: decode_rate(model) for name, model in single.items()}, ROUNDS
        )
        batched = {name: load(path, DTYPES[name], ROWS) for name, path in folders.items()}
        prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
        agreement = statistics.mean(
            (followed == answer).float().mean().item()
            for first in range(0, len(prompts), ROWS)
            for answer in [answers(batched["float32"], prompts[first : first + ROWS])]
            for followed in [answers(batched["int8"], prompts[first : first + ROWS], answer)]
        )
        values = {name: perplexity(model, tokens) for name, model in batched.items()}
        sizes = {name: weight_bytes(model) for name, model in single.items()}
    for name in folders:
        print(f"  {name}: {rates[name]:.1f} tokens/s, perplexity {values[name]:.3f}")
    print(f"  int8: same token as float32 along its greedy answers: {agreement:.2%}")
    met = show(
        [
            Check("int8 decode, batch 1, against float32", rates["int8"] / rates["float32"], 1.6),
            Check(
                "int8 weights, bytes against float32",
                sizes["int8"] / sizes["float32"],
                0.35,
                at_least=False,
            ),
            Check("int8: same token as float32 along its greedy answers", agreement, 0.97, unit=""),
            Check(
                "int8 perplexity against float32",
                values["int8"] / values["float32"],
                1.015,
                at_least=False,
            ),
        ]
    )
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()

"""Prompt lookup on the cpu backend against plain decoding, on prompts that ask for copies.

    python benchmarks/speculation.py

Takes SmolLM2-135M. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from fetch_smollm2 import fetch_smollm2
from measure import Check, show

VERIFIED, NEW_TOKENS, ROUNDS = 5, 96, 5


def speed_up(folder: Path) -> Check:
    """Greedy, one row; prompts one after the other."""
    from transformers import AutoTokenizer

    import nxdi
    from nxdi.cli.speculation import LOOKED_UP, print_report
    from nxdi.generation.speculation import PromptLookup
    from nxdi.tools.benchmark.speculation import COPYING_PROMPTS, measure_speculation

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = nxdi.AutoModelForCausalLM.from_pretrained(
        folder, seq_len=512, enable_bucketing=True, speculation_length=VERIFIED
    )
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for text in COPYING_PROMPTS
    ]
    report = measure_speculation(
        model, PromptLookup(min_ngram=LOOKED_UP), prompts, NEW_TOKENS, ROUNDS
    )
    print_report(report)
    return Check("prompt lookup against plain decoding, copies", report.speed_up, must=1.3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    sys.exit(0 if show([speed_up(fetch_smollm2())]) else 1)


if __name__ == "__main__":
    main()

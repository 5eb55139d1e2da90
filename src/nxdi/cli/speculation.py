"""`nxdi bench --speculation`: what speculation is worth on some prompts."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import TYPE_CHECKING

from nxdi.cli.model_options import load_model, load_tokenizer
from nxdi.cli.prompts import encode_chat, encode_text
from nxdi.errors import ConfigError

if TYPE_CHECKING:
    from nxdi.generation.speculation.proposals import Proposer
    from nxdi.tools.benchmark.speculation import SpeculationReport

LOOKUP = "lookup"
_VERIFIED = 5  # tokens of a row per step, unless the options say otherwise
_NEW_TOKENS = 64


def add_speculation_options(group: argparse._ArgumentGroup) -> None:
    """Add what `run_speculation` reads."""
    group.add_argument(
        "--speculation",
        metavar="DRAFT",
        help=f"measure speculation instead, against plain decoding: `{LOOKUP}` for prompt lookup, "
        f"or the folder of a draft model (speculation_length={_VERIFIED} unless --option sets it)",
    )
    group.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="with --speculation: one prompt per line (default: texts to be copied)",
    )


def run_speculation(args: argparse.Namespace) -> None:
    """Load the model and who proposes, measure, and print.

    Raises: ConfigError if there is no draft model, or no prompt.
    """
    from nxdi.tools.benchmark.speculation import measure_speculation

    if "speculation_length" not in dict(args.option):
        args.option = [*args.option, ("speculation_length", _VERIFIED)]
    prompts = _prompts(args)
    proposer = _proposer(args)
    model = load_model(args)
    report = measure_speculation(
        model, proposer, prompts, args.new_tokens or _NEW_TOKENS, args.num_runs
    )
    print_report(report)


def print_report(report: SpeculationReport) -> None:
    """Acceptance by place, then the figures of the whole."""
    counts = report.counts
    print(f"{'place':>5} {'proposed':>9} {'kept':>7}")
    for place, proposed in sorted(counts.proposed.items()):
        share = counts.kept[place] / proposed
        print(f"{place + 1:5} {proposed:9} {counts.kept[place]:7} {share:6.0%}")
    rates = [report.num_tokens / seconds for seconds in (report.plain_seconds, report.seconds)]
    print(
        f"tokens per step: {counts.tokens_per_step:.2f} (mean acceptance {counts.acceptance:.0%})"
    )
    print(
        f"speed-up over plain decoding: {report.speed_up:.2f}x "
        f"({rates[0]:.1f} -> {rates[1]:.1f} tokens/s)"
    )


def _proposer(args: argparse.Namespace) -> Proposer:
    from nxdi.generation.speculation import DraftModel, PromptLookup

    if args.speculation == LOOKUP:
        return PromptLookup()
    draft = copy.copy(args)
    draft.model, draft.artifact_dir = Path(args.speculation), None
    return DraftModel(load_model(draft))


def _prompts(args: argparse.Namespace) -> list[list[int]]:
    """The prompts as tokens, in the form of a chat where the model has one."""
    from nxdi.tools.benchmark.speculation import COPYING_PROMPTS

    texts = list(COPYING_PROMPTS)
    if args.prompts is not None:
        try:
            texts = [line for line in args.prompts.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--prompts {args.prompts} cannot be read: {error}") from error
    tokenizer = load_tokenizer(args.model)
    has_chat = tokenizer.chat_template is not None
    encoded = [
        encode_chat(args.model, tokenizer, [{"role": "user", "content": text}])
        if has_chat
        else encode_text(args.model, tokenizer, text)
        for text in texts
    ]
    return [prompt["input_ids"][0].tolist() for prompt in encoded]

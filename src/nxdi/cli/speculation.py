"""`nxdi bench --speculation`: what speculation is worth on some prompts."""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi.cli.model_options import check_model_folder, config_keywords, load_model, load_tokenizer
from nxdi.cli.prompts import encode_chat, encode_text
from nxdi.errors import ConfigError

if TYPE_CHECKING:
    from nxdi.generation.speculation.proposals import Proposer
    from nxdi.models.causal_lm import NeuronBaseForCausalLM
    from nxdi.tools.benchmark.speculation import SpeculationReport

LOOKUP, MEDUSA = "lookup", "medusa"
_VERIFIED = 5  # tokens of a row per step, unless the options say otherwise
_NEW_TOKENS = 64
LOOKED_UP = 3  # tokens that occur again: a match of fewer is not worth a longer step on a CPU
NUM_RUNS = 3  # with and without; a first one of both is left out
# Keywords that a model does without when it decodes plainly.
_SPECULATIVE = {
    *("speculation_length", "token_tree_config", "enable_fused_speculation", "draft_model_path"),
    *("enable_eagle_speculation", "is_eagle3", "enable_eagle_draft_input_norm", "is_medusa"),
    *("num_medusa_heads", "medusa_heads_path", "medusa_speculation_length", "medusa_tree"),
}


@dataclass(frozen=True)
class _Measured:
    """What is compared: a model, who proposes to it (None: itself), and the same model without."""

    model: NeuronBaseForCausalLM
    proposer: Proposer | None
    plain: NeuronBaseForCausalLM


def add_speculation_options(group: argparse._ArgumentGroup) -> None:
    """Add what `run_speculation` reads."""
    group.add_argument(
        "--speculation",
        metavar="WHO",
        help=f"measure speculation instead, against plain decoding. WHO proposes: `{LOOKUP}` for "
        f"prompt lookup, `{MEDUSA}` for Medusa heads beside MODEL's weights, or the folder of a "
        "draft model, an EAGLE head or Medusa heads; with --option enable_fused_speculation=true "
        f"in MODEL's graphs (speculation_length={_VERIFIED} unless --option sets it)",
    )
    group.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="with --speculation: one prompt per line (default: texts to be copied)",
    )


def run_speculation(args: argparse.Namespace) -> None:
    """Load the model and who proposes, measure, and print.

    Raises: ConfigError if there is nobody who proposes, or no prompt.
    """
    from nxdi.tools.benchmark.speculation import measure_speculation

    prompts = _prompts(args)
    found = _load(args)
    new_tokens = args.new_tokens or _NEW_TOKENS
    num_runs = args.num_runs or NUM_RUNS
    report = measure_speculation(
        found.model, found.proposer, prompts, new_tokens, num_runs, found.plain
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


def _load(args: argparse.Namespace) -> _Measured:
    """What `--speculation` asks for, from the name, the folder or the options."""
    from nxdi.generation.speculation import PromptLookup
    from nxdi.generation.speculation.generate import make_draft
    from nxdi.models.draft_folder import draft_keywords, eagle_options, holds_medusa_heads

    given = config_keywords(args)
    keywords = {"speculation_length": _VERIFIED, **given}
    if args.speculation == MEDUSA:
        return _with_heads(args, given)
    if args.speculation == LOOKUP:
        return _beside(load_model(args, keywords), PromptLookup(min_ngram=LOOKED_UP))
    folder = Path(args.speculation)
    check_model_folder(folder)
    if holds_medusa_heads(folder):
        return _with_heads(args, {"medusa_heads_path": str(folder), **given})
    eagle = eagle_options(folder)
    if eagle:
        keywords |= {"enable_eagle_speculation": True, "is_eagle3": eagle["is_eagle3"]}
    if given.get("enable_fused_speculation"):
        graphs = {"on_device_sampling_config": {}, "draft_model_path": folder}
        return _alone(args, {**graphs, **keywords, **eagle})
    draft = copy.copy(args)
    draft.model, draft.artifact_dir = folder, None
    own = draft_keywords({**keywords, **eagle})
    if eagle:
        own["target_model_path"] = args.model
    return _beside(load_model(args, keywords), make_draft(load_model(draft, own)))


def _with_heads(args: argparse.Namespace, given: dict[str, Any]) -> _Measured:
    """Medusa: all heads there are, in line, unless the options say otherwise."""
    from nxdi.runtime.heads import count_heads, find_heads

    options: dict[str, Any] = {"is_medusa": True}
    if "num_medusa_heads" not in given:
        path = given.get("medusa_heads_path")
        num_heads = count_heads(find_heads(args.model, None if path is None else str(path)))
        options |= {"num_medusa_heads": num_heads, "medusa_speculation_length": num_heads + 1}
    return _alone(args, {**options, **given})


def _beside(model: NeuronBaseForCausalLM, proposer: Proposer) -> _Measured:
    """A model whose decode graphs are plain ones."""
    return _Measured(model, proposer, model)


def _alone(args: argparse.Namespace, keywords: dict[str, Any]) -> _Measured:
    """A model that proposes by itself, in all its graphs."""
    without = copy.copy(args)
    without.artifact_dir = None
    plain = {name: value for name, value in keywords.items() if name not in _SPECULATIVE}
    return _Measured(load_model(args, keywords), None, load_model(without, plain))


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

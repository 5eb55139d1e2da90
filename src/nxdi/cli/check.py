"""`nxdi check`: compare a model with transformers, and name what differs first."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi.cli.model_options import (
    add_artifact_option,
    add_model_options,
    check_model_folder,
    config_keywords,
    load_tokenizer,
    plan_model,
)
from nxdi.cli.prompts import encode_text
from nxdi.errors import ConfigError

if TYPE_CHECKING:
    from nxdi.models.causal_lm import NeuronBaseForCausalLM
    from nxdi.tools.accuracy.reference import Prompts

EXIT_DIVERGES = 1
_DESCRIPTION = """\
Compare a model with transformers in float32. Modes: token compares the text that `generate` writes,
logit the logits of every step, both on the chosen backend; layers finds the module that introduces
the first difference, always in float32 on the eager backend. Exit code 1: they differ.
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "check", help="compare a model with transformers", description=_DESCRIPTION
    )
    add_model_options(parser)
    add_artifact_option(parser)
    group = parser.add_argument_group("check options")
    what = group.add_mutually_exclusive_group()
    what.add_argument("--prompts", nargs="+", metavar="TEXT", help="one row of the batch for each")
    what.add_argument(
        "--prompt-len",
        type=int,
        default=32,
        metavar="N",
        help="tokens of random prompts, which need no tokenizer (default: %(default)s)",
    )
    group.add_argument(
        "--num-tokens", type=int, default=16, metavar="N", help="to generate (default: %(default)s)"
    )
    group.add_argument("--mode", choices=("all", "token", "logit", "layers"), default="all")
    group.add_argument(
        "--tolerance",
        type=float,
        default=1.0,
        metavar="X",
        help="multiply every tolerance by X, as a dtype of 16 bits may need (default: 1)",
    )
    group.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="MODULE",
        help="do not compare this module itself, such as 'layers.*.mlp'; may be repeated",
    )
    group.add_argument("--json", action="store_true", help="print all numbers as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the verdict, one line or JSON. Returns: the exit code."""
    check_model_folder(args.model)
    _check_numbers(args)
    from nxdi.tools.accuracy import report
    from nxdi.tools.accuracy.reference import load_reference

    modes = report.MODES if args.mode == "all" else (args.mode,)
    keywords = _keywords(args)
    planned = plan_model(args, keywords)
    prompts = _prompts(args, planned)  # before anything is compiled
    reference, check = load_reference(planned), report.Check()
    if modes != ("layers",):
        check.outcomes |= report.check_tokens_and_logits(
            _load(args, keywords, args.artifact_dir),
            reference,
            prompts,
            args.num_tokens,
            modes,
            args.tolerance,
        )
    if "layers" in modes:
        model = _load(args, {**keywords, **report.LAYER_OPTIONS})
        check.outcomes["layers"] = report.check_layers(
            model, reference, prompts, args.num_tokens, args.tolerance, args.ignore
        )
    print(json.dumps(check.to_dict(), indent=2) if args.json else check.summary)
    return 0 if check.passed else EXIT_DIVERGES


def _keywords(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of NeuronConfig; by default float32, with a row for each prompt.

    Graphs that sample return their logits as well, since those are compared.
    """
    defaults: dict[str, Any] = {"torch_dtype": "float32"}
    if args.prompts is not None:
        defaults["batch_size"] = len(args.prompts)
    keywords = {**defaults, **config_keywords(args)}
    if keywords.get("on_device_sampling_config") is not None and args.mode != "token":
        keywords.setdefault("output_logits", True)
    return keywords


def _load(
    args: argparse.Namespace, keywords: Mapping[str, Any], artifact_dir: Path | None = None
) -> NeuronBaseForCausalLM:
    from nxdi.models.auto import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        args.model, architecture=args.architecture, artifact_dir=artifact_dir, **keywords
    )


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ("prompt_len", "num_tokens"):
        if getattr(args, name) < 1:
            raise ConfigError(
                f"--{name.replace('_', '-')}={getattr(args, name)} must be at least 1"
            )
    if not args.tolerance > 0:
        raise ConfigError(f"--tolerance={args.tolerance} must be more than 0")


def _prompts(args: argparse.Namespace, model: NeuronBaseForCausalLM) -> Prompts:
    """Raises: ConfigError or BucketError if they and the new tokens do not fit the model."""
    from nxdi.tools.accuracy.reference import Prompts
    from nxdi.tools.accuracy.report import random_prompts
    from nxdi.tools.model_info.request import plan_request

    num_rows = model.neuron_config.batch_size
    if args.prompts is None:
        prompts = random_prompts(num_rows, args.prompt_len, model.config.vocab_size)
    else:
        tokenizer = load_tokenizer(args.model)
        encoded = (encode_text(args.model, tokenizer, text) for text in args.prompts)
        prompts = Prompts(tuple(one["input_ids"][0].long() for one in encoded))
    if len(prompts.rows) > num_rows:
        raise ConfigError(
            f"{len(prompts.rows)} prompts do not fit --batch-size {num_rows}; raise it"
        )
    if min(prompts.lengths) == 0:
        raise ConfigError("a prompt is empty; every row needs at least one token")
    plan_request(model.plan, model.neuron_config, max(prompts.lengths), args.num_tokens)
    return prompts

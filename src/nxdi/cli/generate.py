"""`nxdi generate`: continue a prompt."""

from __future__ import annotations

import argparse
from typing import Any

from nxdi.cli.answer import add_answer_options, print_answer, set_seed
from nxdi.cli.model_options import (
    add_artifact_option,
    add_model_options,
    load_model,
    load_tokenizer,
)
from nxdi.cli.prompts import encode_text


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "generate", help="continue a prompt", description="Continue a prompt as it stands."
    )
    add_model_options(parser)
    add_artifact_option(parser)
    add_answer_options(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the continuation, without the prompt."""
    tokenizer = load_tokenizer(args.model)
    model = load_model(args)
    set_seed(args)
    print_answer(model, tokenizer, encode_text(args.model, tokenizer, args.prompt), args)

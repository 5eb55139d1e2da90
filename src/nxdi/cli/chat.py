"""`nxdi chat`: talk with a model through its chat template."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from nxdi.cli.answer import add_answer_options, print_answer, set_seed
from nxdi.cli.model_options import (
    add_artifact_option,
    add_model_options,
    load_model,
    load_tokenizer,
)
from nxdi.cli.prompts import encode_chat
from nxdi.errors import ConfigError


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "chat",
        help="talk with a model",
        description="Talk with a model through its chat template; the end of input ends the chat.",
    )
    add_model_options(parser)
    add_artifact_option(parser)
    add_answer_options(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="ask this one question and stop")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Answer each line in turn; the model sees the whole conversation.

    Raises: ConfigError if the tokenizer has no chat template.
    """
    tokenizer = load_tokenizer(args.model)
    if tokenizer.chat_template is None:
        raise ConfigError(f"{args.model}: its tokenizer has no chat template; use nxdi generate")
    model = load_model(args)
    set_seed(args)
    messages: list[dict[str, str]] = []
    for line in _read_lines() if args.prompt is None else [args.prompt]:
        messages.append({"role": "user", "content": line})
        prompt = encode_chat(args.model, tokenizer, messages)
        answer = print_answer(model, tokenizer, prompt, args)
        messages.append({"role": "assistant", "content": answer})


def _read_lines() -> Iterator[str]:
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt)
        except EOFError:
            return
        if line.strip():
            yield line

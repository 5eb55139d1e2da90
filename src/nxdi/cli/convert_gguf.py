"""`nxdi convert-gguf`: make a Hugging Face folder from a GGUF file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "convert-gguf",
        help="make a model folder from a GGUF file",
        description="Convert a Llama-architecture GGUF file, dequantised to float32.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the GGUF file")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must not exist")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Convert, and name the folder written."""
    from nxdi.tools.gguf import convert_gguf

    print(convert_gguf(args.file, args.out))

"""`nxdi compile`: compile a model's graphs into a folder."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from nxdi.cli.format import format_size
from nxdi.cli.model_options import add_model_options, load_model


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "compile",
        help="compile a model into a folder",
        description="Compile a model's graphs, write them to a folder, and check that they load.",
    )
    add_model_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compile, load once, and say in one line what was written."""
    from nxdi.runtime.store import read_manifest

    start = time.perf_counter()
    load_model(args, artifact_dir=args.out)
    seconds = time.perf_counter() - start
    manifest = read_manifest(args.out)
    size = format_size(sum(record["size"] for record in manifest.files.values()))
    print(f"{args.out}: {len(manifest.graphs)} graphs, {size}, ready in {seconds:.1f} s")

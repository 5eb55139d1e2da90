"""`nxdi compile`: compile a model's graphs into a folder."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi.cli.format import format_size
from nxdi.cli.model_options import add_model_options, plan_model
from nxdi.errors import ArtifactError

if TYPE_CHECKING:
    from nxdi.models.causal_lm import NeuronBaseForCausalLM


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "compile",
        help="compile a model into a folder",
        description="Compile a model's graphs into a folder; what the folder held is replaced.",
    )
    add_model_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compile unless the folder is up to date, and say in one line what it holds."""
    model = plan_model(args)

    from nxdi.runtime.store import read_manifest

    start = time.perf_counter()
    is_current = _is_current(model, args.out)
    if not is_current:
        model.compile(args.out)
    manifest = read_manifest(args.out)
    size = format_size(sum(record["size"] for record in manifest.files.values()))
    done = "was up to date" if is_current else f"compiled in {time.perf_counter() - start:.1f} s"
    print(f"{args.out}: {len(manifest.graphs)} graphs, {size}, {done}")


def _is_current(model: NeuronBaseForCausalLM, out: Path) -> bool:
    from nxdi.runtime.artifact import Artifact

    try:
        Artifact(out).check(model)
    except ArtifactError:  # missing, damaged, or made for something else
        return False
    return True

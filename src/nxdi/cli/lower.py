"""`nxdi lower`: the HLO of every graph, where torch_xla is installed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from nxdi.cli.model_options import add_model_options, plan_model


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "lower",
        help="write the HLO of every graph (needs torch_xla)",
        description="Lower every graph of a model to HLO through torch_xla, without a device or "
        "its SDK, and say what is in it.",
    )
    add_model_options(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write to")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write GRAPH.hlo (proto), GRAPH.txt and summary.json; print one line per graph."""
    model = plan_model(args)

    from nxdi.tools.lowering.lower import import_torch_xla, lower_graph
    from nxdi.tools.lowering.summary import summarise

    import_torch_xla()
    args.out.mkdir(parents=True, exist_ok=True)
    summaries = []
    for spec in model.plan.graphs:
        lowered = lower_graph(model.program(), spec, model.num_ranks)
        (args.out / f"{spec.name}.hlo").write_bytes(lowered.proto)
        (args.out / f"{spec.name}.txt").write_text(lowered.text, encoding="utf-8")
        summary = summarise(lowered)
        summaries.append(summary.to_dict())
        collectives = ", ".join(f"{n} {c.op} {c.groups}" for c, n in summary.collectives)
        print(
            f"{summary.graph}: {summary.num_instructions} instructions, "
            f"{summary.aliased_caches} caches, {summary.flops / 1e9:.3f} GFLOP, "
            f"{summary.num_bytes / 1e6:.1f} MB; {collectives or 'no collectives'}"
        )
    text = json.dumps(summaries, indent=1)
    (args.out / "summary.json").write_text(text + "\n", encoding="utf-8")

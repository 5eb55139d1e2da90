"""`nxdi bench`: measure how fast a model generates."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi.cli.model_options import add_artifact_option, add_model_options, load_model

if TYPE_CHECKING:
    from nxdi.tools.benchmark.stages import Report

_TARGETS = ("all", "e2e", "context_encode", "token_gen")


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "bench",
        help="measure latency and throughput",
        description="Measure latency and throughput on random prompts. Only generated tokens "
        "count as throughput.",
    )
    add_model_options(parser)
    add_artifact_option(parser)
    group = parser.add_argument_group("benchmark options")
    group.add_argument("--target", choices=_TARGETS, default="all", help="default: %(default)s")
    group.add_argument("--num-runs", type=int, default=20, metavar="N", help="default: %(default)s")
    group.add_argument("--prompt-len", type=int, metavar="N", help="tokens of each prompt")
    group.add_argument("--new-tokens", type=int, metavar="N", help="tokens to generate per prompt")
    group.add_argument(
        "--out",
        type=Path,
        default=Path("benchmark_report.json"),
        metavar="FILE",
        help="JSON to write; a CSV and an HTML page go beside it (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, write the reports, and print the figures."""
    model = load_model(args)

    from nxdi.tools.benchmark import Workload, measure, write_report
    from nxdi.tools.benchmark.sampling import default_workload

    usual = default_workload(model.neuron_config)
    new_tokens = usual.new_tokens if args.new_tokens is None else args.new_tokens
    prompt_len = usual.prompt_len if args.prompt_len is None else args.prompt_len
    workload = Workload(prompt_len, new_tokens, usual.num_rows)
    report = measure(model, workload, None, args.target, args.num_runs)
    files = write_report(report, args.out)
    _print_figures(report)
    print("written:", *files)


def _print_figures(report: Report) -> None:
    work = report.workload
    print(
        f"{len(report.runs)} runs of {work.num_rows} prompts with {work.prompt_len} tokens and "
        f"{work.new_tokens} new tokens each"
    )
    print(
        f"{'ms':32}{'p50':>9}{'p90':>9}{'p95':>9}{'p99':>9}{'p100':>9}{'mean':>9}{'tokens/s':>11}"
    )
    for stage in report.stages:
        figures = report.figures(stage)
        throughput = figures.pop("throughput")
        latencies = [value for name, value in figures.items() if name.startswith("latency_ms")]
        print(f"{stage.heading:32}{''.join(f'{v:9.2f}' for v in latencies)}{throughput:11.1f}")

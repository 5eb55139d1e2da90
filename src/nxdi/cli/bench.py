"""`nxdi bench`: measure how fast a model generates."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi.cli.model_options import (
    add_artifact_option,
    add_model_options,
    load_model,
    plan_model,
)
from nxdi.cli.numbers import within
from nxdi.cli.speculation import NUM_RUNS, add_speculation_options, run_speculation

if TYPE_CHECKING:
    from nxdi.tools.benchmark import Report, Workload

_NUM_RUNS = 20
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
    number = within(int, 1)
    group.add_argument(
        "--num-runs",
        type=number,
        metavar="N",
        help=f"default: {_NUM_RUNS}, with --speculation {NUM_RUNS}",
    )
    group.add_argument("--prompt-len", type=number, metavar="N", help="tokens of each prompt")
    group.add_argument("--new-tokens", type=number, metavar="N", help="tokens to generate of each")
    group.add_argument(
        "--out",
        type=Path,
        default=Path("benchmark_report.json"),
        metavar="FILE",
        help="JSON to write; a CSV and an HTML page go beside it (default: %(default)s)",
    )
    add_speculation_options(group)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, write the reports, and print the figures."""
    if args.speculation is not None:
        run_speculation(args)
        return
    workload = _workload(args)

    from nxdi.tools.benchmark import measure, report_files, write_report

    report_files(args.out)  # before anything is compiled
    report = measure(load_model(args), workload, None, args.target, args.num_runs or _NUM_RUNS)
    files = write_report(report, args.out)
    _print_figures(report)
    print("written:", *files)


def _workload(args: argparse.Namespace) -> Workload:
    """What the command line asks for; what it leaves open fills the sequence.

    Raises: ConfigError or BucketError if it cannot be measured on such a model.
    """
    planned = plan_model(args)

    from nxdi.tools.benchmark import Workload
    from nxdi.tools.benchmark.sampling import default_workload, fit_to_target
    from nxdi.tools.model_info.request import plan_request

    config = planned.neuron_config
    usual = default_workload(config)
    room = max(2, config.max_length - (args.prompt_len or usual.prompt_len))  # one is a prefill's
    new_tokens = args.new_tokens or min(usual.new_tokens, room)
    prompt_len = args.prompt_len or max(1, min(usual.prompt_len, config.max_length - new_tokens))
    workload = fit_to_target(Workload(prompt_len, new_tokens, usual.num_rows), args.target)
    plan_request(planned.plan, config, **vars(workload))
    return workload


def _print_figures(report: Report) -> None:
    print(f"{len(report.runs)} runs of {report.workload}")
    print(
        f"{'ms':32}{'p50':>9}{'p90':>9}{'p95':>9}{'p99':>9}{'p100':>9}{'mean':>9}{'tokens/s':>11}"
    )
    for stage in report.stages:
        figures = report.figures(stage)
        throughput = figures.pop("throughput")
        latencies = [value for name, value in figures.items() if name.startswith("latency_ms")]
        print(f"{stage.heading:32}{''.join(f'{v:9.2f}' for v in latencies)}{throughput:11.1f}")

"""`nxdi info`: what a model will be, before anything is compiled."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nxdi.cli.format import format_size
from nxdi.cli.model_options import add_model_options, plan_model

if TYPE_CHECKING:
    from nxdi.tools.model_info.records import GraphInfo, KernelInfo, ModelInfo, RequestInfo


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "info",
        help="show a model's graphs, memory and kernels before compiling",
        description="Show what compiling and loading a model will make. Needs config.json only.",
    )
    add_model_options(parser)
    parser.add_argument(
        "--request",
        type=_parse_request,
        action="append",
        default=[],
        metavar="PROMPT_LEN,NEW_TOKENS[,PROMPTS]",
        help="name the graphs that such a request will use; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the plan as text or JSON."""
    model = plan_model(args)

    from nxdi.tools.model_info import describe_model

    info = describe_model(model, args.request)
    print(json.dumps(asdict(info), indent=1) if args.json else "\n".join(_lines(info)))


def _lines(info: ModelInfo) -> Iterator[str]:
    ranks = "1 rank" if info.tp_degree == 1 else f"{info.tp_degree} ranks"
    yield f"{info.model}: {info.architecture}, {info.torch_dtype}, {ranks}, backend {info.backend}"
    yield f"parameters  {info.num_parameters:,}"
    yield f"weights     {format_size(max(info.weight_bytes))} on each rank"
    yield f"KV caches   {format_size(info.cache_bytes)} on each rank"
    for cache in info.caches:
        yield f"  {cache.count} x {cache.dtype} {list(cache.shape)}"
    yield from _titled("notes", info.notes)
    yield from _titled("graphs", (_graph_line(graph) for graph in info.graphs))
    yield from _titled("kernels", _kernel_lines(info))
    yield from _titled(
        "options without effect",
        (f"{option.name}={option.value}: {option.reason}" for option in info.no_op_options),
    )
    for request in info.requests:
        yield from _request_lines(request)


def _titled(title: str, lines: Any) -> Iterator[str]:
    indented = [f"  {line}" for line in lines]
    if indented:
        yield title
        yield from indented


def _graph_line(graph: GraphInfo) -> str:
    inputs = ", ".join(f"{name} {list(shape)}" for name, shape in graph.inputs.items())
    return f"{graph.name}: {inputs} -> {', '.join(graph.outputs)}"


def _kernel_lines(info: ModelInfo) -> Iterator[str]:
    """Each kernel once: the graphs and layers that use it, and why the ones before it declined."""
    users: dict[tuple[str, str], dict[str, list[KernelInfo]]] = {}
    for graph in info.graphs:
        for kernel in graph.kernels:
            kind = "reference" if kernel.is_reference else "kernel"
            of_graph = users.setdefault((kernel.op, f"{kind} {kernel.chosen}"), {})
            of_graph.setdefault(graph.name, []).append(kernel)
    for (op, chosen), graphs in sorted(users.items()):
        yield f"{op}: {chosen} in {', '.join(_shortened(list(graphs), info))}"
        kernels = [kernel for of_graph in graphs.values() for kernel in of_graph]
        layers = dict.fromkeys(_without_numbers(x) for kernel in kernels for x in kernel.layers)
        yield f"  of {', '.join(layers)}"
        yield from _reason_lines(kernels)


def _without_numbers(layer: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", layer)


def _reason_lines(kernels: list[KernelInfo]) -> Iterator[str]:
    reasons: dict[str, dict[str, None]] = {}
    for kernel in kernels:
        for name, reason in kernel.declined.items():
            reasons.setdefault(name, {})[reason] = None
    for name, given in reasons.items():
        others = f" (and {len(given) - 1} more reasons: --json)" if len(given) > 1 else ""
        yield f"  {name} declined: {next(iter(given))}{others}"


def _shortened(graphs: list[str], info: ModelInfo) -> Iterator[str]:
    """Names of graphs, with one word for all graphs or all of a phase."""
    if len(graphs) == len(info.graphs):
        yield "all graphs"
        return
    for phase in dict.fromkeys(graph.phase for graph in info.graphs):
        of_phase = [graph.name for graph in info.graphs if graph.phase == phase]
        used = [name for name in of_phase if name in graphs]
        yield from [f"all {phase} graphs"] if used == of_phase else used


def _request_lines(request: RequestInfo) -> Iterator[str]:
    prompts = "1 prompt" if request.num_rows == 1 else f"{request.num_rows} prompts"
    yield f"request: {prompts} of {request.prompt_len} tokens, {request.new_tokens} new tokens"
    for step in request.steps:
        tokens = f"token {step.first_token}"
        if step.last_token > step.first_token:
            tokens = f"tokens {step.first_token} to {step.last_token}"
        steps = "1 step" if step.num_steps == 1 else f"{step.num_steps} steps"
        yield f"  {step.graph}: {steps}, {tokens}"


def _parse_request(text: str) -> tuple[int, int, int]:
    numbers = text.split(",")
    if not (2 <= len(numbers) <= 3 and all(number.strip().isdecimal() for number in numbers)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not PROMPT_LEN,NEW_TOKENS or PROMPT_LEN,NEW_TOKENS,PROMPTS"
        )
    prompt_len, new_tokens, num_rows = [*map(int, numbers), 1][:3]
    return prompt_len, new_tokens, num_rows

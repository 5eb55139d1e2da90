"""Estimates as text, as plain data for JSON, and as an HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from nxdi.errors import NxdiError
from nxdi.tools.benchmark.charts import stacked_bars
from nxdi.tools.benchmark.page import document, table
from nxdi.tools.estimate.planner import Estimate, GraphEstimate
from nxdi.tools.estimate.times import Times

_PARTS = ("compute", "memory", "collectives", "launch", "draft")


@dataclass(frozen=True)
class Variant:
    """One set of options of a comparison: what was estimated, or why it cannot be."""

    options: Mapping[str, Any]
    estimate: Estimate | None
    refusal: NxdiError | None = None

    @property
    def name(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.options.items()) or "as given"

    @property
    def label(self) -> str:
        """The values alone, for a chart."""
        return " / ".join(map(str, self.options.values()))


def to_dict(variant: Variant) -> dict[str, Any]:
    """A variant as JSON data; times in seconds, sizes in bytes of one rank."""
    found = variant.estimate
    if found is None:
        return {"options": dict(variant.options), "refusal": str(variant.refusal)}
    memory, hardware = found.memory, found.hardware
    return {
        "options": dict(variant.options),
        "model": found.model,
        "target": hardware.target.name,
        "logical_size": hardware.logical_size,
        "workload": vars(found.workload),
        "memory": {**vars(memory), "total": memory.total, "fits": memory.fits},
        "first_token": _times(found.first_token),
        "per_token": _times(found.per_token),
        "request_seconds": found.request_seconds,
        "tokens_per_second": found.tokens_per_second,
        "bound": found.bound,
        "problems": list(found.problems),
        "graphs": [_graph(graph) for graph in found.graphs],
    }


def _times(times: Times) -> dict[str, Any]:
    return {**vars(times), "total": times.total, "bound": times.bound}


def _graph(graph: GraphEstimate) -> dict[str, Any]:
    work = graph.work
    sizes = ("weight_bytes", "cache_bytes", "written_bytes", "activation_bytes", "collective_bytes")
    return {
        "name": graph.spec.name,
        "phase": graph.spec.phase.value,
        "flops": {"weights": work.weight_flops, "attention": work.attention_flops},
        **{name: getattr(work, name) for name in sizes},
        "num_products": work.num_products,
        "num_collectives": work.num_collectives,
        "times": _times(graph.times),
    }


def describe(found: Estimate) -> Iterator[str]:
    """One estimate as lines of text."""
    hardware, memory = found.hardware, found.memory
    cores = "1 core" if hardware.logical_size == 1 else f"{hardware.logical_size} cores"
    yield f"{found.model} on {hardware.target.name}, {cores} per rank: {found.workload}"
    yield (
        f"memory       {_gb(memory.weights)} weights + {_gb(memory.caches)} caches + "
        f"{_gb(memory.workspace)} activations = {_gb(memory.total)} of {_gb(memory.usable)} GB "
        f"on each rank: {'fits' if memory.fits else 'DOES NOT FIT'}"
    )
    yield f"first token  {_ms(found.first_token.total)} ms, bound by {found.first_token.bound}"
    if found.workload.new_tokens > 1:
        yield f"per token    {_ms(found.per_token.total)} ms, bound by {found.per_token.bound}"
    yield f"throughput   {found.tokens_per_second:.1f} generated tokens/s"
    yield from text_table(_GRAPH_TITLES, [_graph_cells(graph) for graph in found.graphs])
    if found.problems:
        yield "padding and kernels"
        yield from (f"  {problem}" for problem in found.problems)


_GRAPH_TITLES = (
    *("one step of a rank", "GFLOP", "weights GB", "caches GB", "activ. GB"),
    *("collectives", "sent MB", "ms", "compute", "memory", "collect.", "launch", "bound by"),
)


def _graph_cells(graph: GraphEstimate) -> list[str]:
    work, times = graph.work, graph.times
    return [
        graph.spec.name,
        f"{work.flops / 1e9:.2f}",
        *map(_gb, (work.weight_bytes, work.cache_bytes, work.activation_bytes)),
        str(work.num_collectives),
        f"{work.collective_bytes / 1e6:.1f}",
        _ms(times.total),
        *map(_ms, (times.compute, times.memory, times.collectives, times.launch)),
        times.bound,
    ]


_VARIANT_TITLES = (
    *("GB per rank", "of", "fits", "first token ms", "per token ms", "tokens/s", "bound by"),
)


def compare(variants: Sequence[Variant]) -> Iterator[str]:
    """A line for each variant, and below why some are refused."""
    titles, rows = _comparison(variants)
    yield from text_table(titles, rows)
    for variant in variants:
        if variant.estimate is None:
            yield f"{variant.name}: {variant.refusal}"


def _comparison(variants: Sequence[Variant]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for variant in variants for name in variant.options))
    rows = [
        [*(str(variant.options.get(name, "")) for name in names), *_variant_cells(variant)]
        for variant in variants
    ]
    return [*names, *_VARIANT_TITLES], rows


def _variant_cells(variant: Variant) -> list[str]:
    found = variant.estimate
    if found is None:
        return ["refused", *[""] * (len(_VARIANT_TITLES) - 1)]
    return [
        _gb(found.memory.total),
        _gb(found.memory.usable),
        "yes" if found.memory.fits else "NO",
        _ms(found.first_token.total),
        _ms(found.per_token.total),
        f"{found.tokens_per_second:.1f}",
        found.bound,
    ]


def text_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip()


def render_page(variants: Sequence[Variant]) -> str:
    """The comparison as a page that needs no other file: the table, and two charts."""
    found = [(v.label, v.estimate) for v in variants if v.estimate is not None]
    title = f"Estimates for {found[0][1].model}" if found else "Estimates"
    return document(title, _body(title, variants, found))


def _body(
    title: str, variants: Sequence[Variant], found: Sequence[tuple[str, Estimate]]
) -> Iterator[str]:
    yield f"<h1>{escape(title)}</h1>"
    yield '<p class="sub">Predictions from the configuration; nothing was run.</p>'
    titles, rows = _comparison(variants)
    yield f'<figure class="wide">{table(titles, rows)}</figure>'
    yield from (
        f"<p>{escape(variant.name)}: {escape(str(variant.refusal))}</p>"
        for variant in variants
        if variant.estimate is None
    )
    if found:
        labels = [label for label, _ in found]
        if variants[0].options:
            order = " / ".join(variants[0].options)
            yield f'<p class="sub">Bars are named by {escape(order)}.</p>'
        yield "<h2>Time per output token</h2>"
        yield _chart(labels, [one.per_token for _, one in found], "Time per output token")
        yield "<h2>Time to first token</h2>"
        yield _chart(labels, [one.first_token for _, one in found], "Time to first token")


def _chart(labels: Sequence[str], times: Sequence[Times], title: str) -> str:
    parts = {part: [1e3 * getattr(one, part) for one in times] for part in _PARTS}
    return f"<figure>{stacked_bars(labels, parts, 'ms', title)}</figure>"


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"

"""A report as one HTML page that needs nothing else: no script, no font, no other file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

import numpy as np

from nxdi.tools.benchmark.charts import band, histogram
from nxdi.tools.benchmark.stages import PERCENTILES, Report, Stage

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #5b6570; --rule: #d8dde3;
  --paper: #ffffff; --fill: #3b76c4; --mark: #b3541e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #9aa5b1; --rule: #363d45; --paper: #15181c; --fill: #6ba3ea;
    --mark: #e9955e; } }
body { margin: 2rem auto; max-width: 52rem; padding: 0 1rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
p.sub, figcaption { color: var(--soft); margin: 0; }
figure { margin: 1rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 0.3rem 0.5rem; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child, table.facts td { text-align: left; }
.wide td:first-child { white-space: nowrap; }
table.facts td { overflow-wrap: anywhere; }
table.facts td:first-child { color: var(--soft); width: 14rem; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .grid { stroke: var(--rule); }
svg .bar { fill: var(--fill); }
svg .band { fill: var(--fill); opacity: 0.25; }
svg .line { fill: none; stroke: var(--fill); stroke-width: 1.5; }
svg .mark { stroke: var(--mark); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg .mark-label { fill: var(--mark); }
svg .part0 { fill: #3b76c4; }
svg .part1 { fill: #d0873a; }
svg .part2 { fill: #4f9a6d; }
svg .part3 { fill: #9a6bb5; }
svg .part4 { fill: #a3a9b0; }
"""


def render_page(report: Report) -> str:
    """The page as text. The same report gives the same text, which is well-formed XML as well."""
    title = f"Benchmark of {report.config.get('model', 'a model')}"
    return document(title, _body(report, title))


def document(title: str, body: Iterable[str]) -> str:
    """An HTML page in the style of all reports; body: its elements."""
    elements = "\n".join(body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{elements}\n</body>\n</html>\n"
    )


def _body(report: Report, title: str) -> Iterator[str]:
    yield f"<h1>{escape(title)}</h1>"
    when = escape(report.measured_at.replace("T", " ").replace("+00:00", " UTC"))
    yield f'<p class="sub">{len(report.runs)} runs of {report.workload}, {when}</p>'
    yield "<h2>Latency and throughput</h2>"
    yield _figures_table(report)
    for stage in report.stages:
        yield f"<h2>{escape(stage.heading)}: latencies</h2>"
        yield _distribution(report, stage)
    if Stage.DECODE in report.stages:
        yield "<h2>Decode time of each token</h2>"
        yield _decode_times(report)
    yield "<h2>Configuration</h2>"
    yield _facts(report.config)
    yield "<h2>Machine</h2>"
    yield _facts(report.machine)


def _figures_table(report: Report) -> str:
    names = [f"latency_ms_p{p}" for p in PERCENTILES] + ["latency_ms_avg"]
    titles = ["", *(f"p{p}" for p in PERCENTILES), "mean", "generated tokens/s"]
    rows = []
    for stage in report.stages:
        figures = report.figures(stage)
        cells = [f"{figures[name]:.2f}" for name in names] + [f"{figures['throughput']:.1f}"]
        rows.append([stage.heading, *cells])
    caption = "<figcaption>Latencies in milliseconds</figcaption>"
    return f'<figure class="wide">{table(titles, rows)}{caption}</figure>'


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts; the first column is that of names."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _distribution(report: Report, stage: Stage) -> str:
    figures, latencies = report.figures(stage), report.latencies_ms(stage)
    marks = {f"p{p}": figures[f"latency_ms_p{p}"] for p in (50, 99)}
    chart = histogram(latencies, marks, f"{stage.heading}: distribution of latencies")
    return f"<figure>{chart}<figcaption>{len(latencies)} latencies</figcaption></figure>"


def _decode_times(report: Report) -> str:
    times = 1000 * np.array([run.later for run in report.runs])
    chart = band(
        range(2, times.shape[1] + 2),
        times.min(axis=0).tolist(),
        np.median(times, axis=0).tolist(),
        times.max(axis=0).tolist(),
        "Decode time of each token",
    )
    caption = "Median over the runs, and the range from the fastest to the slowest run"
    return f"<figure>{chart}<figcaption>{caption}</figcaption></figure>"


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts.items()
    )
    return f'<table class="facts"><tbody>{rows}</tbody></table>'

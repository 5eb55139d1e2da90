from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from nxdi.tools.benchmark.page import render_page
from nxdi.tools.benchmark.stages import Report, RunTimes, Stage, Workload

RUNS = tuple(
    RunTimes(0.5 + n / 100, 0.1 + n / 1000, tuple(0.01 + (n + t) / 10_000 for t in range(8)))
    for n in range(20)
)
REPORT = Report(
    tuple(Stage),
    Workload(16, 9, 2),
    RUNS,
    {"model": "a <b> & 'c' \"d\"", "seq_len": "32"},
    {"cpu": "A & B", "torch": "2.13.0"},
    "2026-01-02T03:04:05+00:00",
)


def elements(page: str) -> ElementTree.Element:
    """The page as XML, which it is only if every tag is closed and every text escaped."""
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    page = render_page(REPORT)
    tree = elements(page)
    assert "http:" not in page
    assert "https:" not in page
    used = {element.tag for element in tree.iter()}
    assert used.isdisjoint({"script", "link", "img", "iframe", "object", "embed"})
    loading = {"src", "href", "xlink:href", "srcset", "data", "onload"}
    assert not loading & {name for element in tree.iter() for name in element.attrib}
    assert not re.search(r"url\(|@import", page)


def test_the_same_report_gives_the_same_page() -> None:
    assert render_page(REPORT) == render_page(REPORT)


def test_the_page_holds_the_numbers() -> None:
    cells = [cell.text for cell in elements(render_page(REPORT)).iter("td")]
    for stage in Stage:
        figures = REPORT.figures(stage)
        row = cells[cells.index(stage.heading) + 1 :][:7]
        names = [f"latency_ms_p{p}" for p in (50, 90, 95, 99, 100)] + ["latency_ms_avg"]
        assert row == [f"{figures[n]:.2f}" for n in names] + [f"{figures['throughput']:.1f}"]
    assert cells[cells.index("cpu") + 1] == "A & B"
    assert cells[cells.index("seq_len") + 1] == "32"
    assert cells[cells.index("model") + 1] == "a <b> & 'c' \"d\""


def test_a_chart_for_each_stage_and_one_of_the_tokens() -> None:
    charts = list(elements(render_page(REPORT)).iter("svg"))
    assert len(charts) == 4
    assert all(chart.get("aria-label") for chart in charts)
    counts = [
        sum(int((title.text or "").rpartition(" ")[2]) for title in chart.iter("title"))
        for chart in charts[:3]
    ]
    assert counts == [20, 20, 160]  # every latency is in a bar
    (line,) = charts[3].iter("polyline")
    assert len((line.get("points") or "").split()) == 8


def test_shapes_stay_within_their_chart() -> None:
    for chart in elements(render_page(REPORT)).iter("svg"):
        _, _, width, height = map(float, (chart.get("viewBox") or "").split())
        for shape in chart.iter():
            for name, limit in (("x", width), ("x1", width), ("y", height), ("y1", height)):
                assert 0 <= float(shape.get(name) or 0) <= limit


def test_light_and_dark() -> None:
    page = render_page(REPORT)
    assert "color-scheme: light dark" in page
    assert "@media (prefers-color-scheme: dark)" in page


@pytest.mark.parametrize("stages", [(Stage.E2E,), (Stage.PREFILL,), (Stage.DECODE,)])
def test_one_stage_alone(stages: tuple[Stage, ...]) -> None:
    tree = elements(render_page(replace(REPORT, stages=stages)))
    assert len(list(tree.iter("svg"))) == (2 if Stage.DECODE in stages else 1)


@pytest.mark.parametrize("seconds", [0.25, 1e-9, 1e6])
def test_equal_latencies_have_a_chart(seconds: float) -> None:
    runs = (RunTimes(seconds, seconds, (seconds,)),)
    page = render_page(replace(REPORT, runs=runs, workload=Workload(4, 2, 1)))
    assert "nan" not in page
    assert len(list(elements(page).iter("svg"))) == 4

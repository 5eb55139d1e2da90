"""A report as one HTML page: the numbers, and a timeline with a row per engine."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nxdi.kernels.sim.schedule import Slot

if TYPE_CHECKING:
    from nxdi.kernels.sim.report import Report

WIDTH, ROW, LEFT, MAX_BARS = 1400, 26, 90, 4000
COLORS = {
    "tensor": "#4063d8",
    "vector": "#389826",
    "scalar": "#cb3c33",
    "gpsimd": "#9558b2",
    "dma": "#808080",
    "sync": "#c0a000",
}
_PAGE = """<!doctype html>
<meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 14px sans-serif; margin: 2em }} pre {{ background: #f4f4f4; padding: 1em }}
svg {{ background: #fafafa; width: 100% }} rect:hover {{ opacity: .5 }}</style>
<h1>{title}</h1><pre>{text}</pre>
<svg viewBox="0 0 {width} {height}">{bars}</svg>
<p>Hover over a bar for its instruction and source line.{cut}</p>
"""


def make_page(report: Report) -> str:
    """The page, self-contained."""
    slots = [slot for core in report.slots for slot in core if slot.ended > slot.start]
    shown = sorted(slots, key=lambda slot: slot.start - slot.ended)[:MAX_BARS]
    rows = sorted({_row(slot) for slot in shown})
    cut = "" if len(slots) <= MAX_BARS else f" The longest {MAX_BARS} of {len(slots)} are shown."
    return _PAGE.format(
        title=f"{report.time_us:.1f} us on {report.machine}",
        text=html.escape(str(report)),
        width=WIDTH,
        height=ROW * len(rows) + 10,
        bars="".join(_draw(shown, rows, max(report.time_us * 1e3, 1e-9))),
        cut=cut,
    )


def _row(slot: Slot) -> str:
    return f"{slot.core} {slot.instruction.engine.name}"


def _draw(slots: list[Slot], rows: list[str], total: float) -> Iterator[str]:
    for at, name in enumerate(rows):
        yield f'<text x="2" y="{at * ROW + 18}">{name}</text>'
    scale = (WIDTH - LEFT) / total
    for slot in slots:
        item = slot.instruction
        title = html.escape(f"{item.op} {slot.start:.0f}..{slot.ended:.0f} ns {item.line}")
        yield (
            f'<rect x="{LEFT + slot.start * scale:.2f}" y="{rows.index(_row(slot)) * ROW + 4}" '
            f'width="{max(0.3, (slot.ended - slot.start) * scale):.2f}" height="{ROW - 6}" '
            f'fill="{COLORS[item.engine.name]}"><title>{title}</title></rect>'
        )

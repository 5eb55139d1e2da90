"""Charts as inline SVG: drawn here, coloured by the page's style sheet, no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

_WIDTH, _HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 32, 22, 40
_NAMES, _BAR = 170, 22  # of bars: width of their names, and height of each


@dataclass(frozen=True)
class _Axis:
    """Values from `low` to `high` mapped to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """About five round numbers within the axis."""
        step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(f for f in (1, 2, 5, 10) if (self.high - self.low) / (step * f) <= 6)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def histogram(values: Sequence[float], marks: dict[str, float], label: str) -> str:
    """How often each latency occurred, with two named marks, in order. Milliseconds."""
    num_bins = min(40, max(5, math.isqrt(len(values))))
    x = _x_axis(min(values), max(values))
    counts, edges = np.histogram(values, num_bins, (x.low, x.high))
    y = _y_axis(0, int(counts.max()))
    bars = [
        f'<rect class="bar" x="{x(a):.1f}" y="{y(n):.1f}" width="{max(x(b) - x(a) - 1, 1):.1f}" '
        f'height="{y(0) - y(n):.1f}"><title>{a:.3g} to {b:.3g} ms: {n}</title></rect>'
        for n, a, b in zip(counts.tolist(), edges, edges[1:], strict=False)
        if n
    ]
    lines = [
        f'<line class="mark" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{_TOP}" y2="{y(0):.1f}"/>'
        f'<text class="mark-label {side}" x="{x(at) + dx:.1f}" y="{_TOP - 6}">{escape(name)}</text>'
        # Two marks at one place have their names on either side of it.
        for (name, at), side, dx in zip(marks.items(), ("end", "start"), (-3, 3), strict=True)
    ]
    return _svg([*_axes(x, y, "ms", "count"), *bars, *lines], label)


def band(
    numbers: Sequence[int],
    low: Sequence[float],
    middle: Sequence[float],
    high: Sequence[float],
    label: str,
) -> str:
    """A line with the range around it, over the number of the token. Milliseconds."""
    x, y = _x_axis(numbers[0], numbers[-1]), _y_axis(0, max(high))
    forth = [f"{x(n):.1f},{y(v):.1f}" for n, v in zip(numbers, high, strict=True)]
    back = [f"{x(n):.1f},{y(v):.1f}" for n, v in zip(numbers, low, strict=True)]
    line = " ".join(f"{x(n):.1f},{y(v):.1f}" for n, v in zip(numbers, middle, strict=True))
    shapes = [
        f'<polygon class="band" points="{" ".join([*forth, *reversed(back)])}"/>',
        f'<polyline class="line" points="{line}"/>',
    ]
    return _svg([*_axes(x, y, "token", "ms"), *shapes], label)


def stacked_bars(
    names: Sequence[str], parts: Mapping[str, Sequence[float]], unit: str, label: str
) -> str:
    """One bar for each name, of parts side by side, with the names of the parts above.

    parts: for each part, by its name, a value for each bar; at most five parts.
    """
    totals = [sum(values) for values in zip(*parts.values(), strict=True)]
    x = _Axis(0, max(totals) * 1.15 or 1.0, _NAMES, _WIDTH - _RIGHT)  # room for the totals
    shapes = [
        f'<rect class="part{i}" x="{_NAMES + 92 * i}" y="4" width="10" height="10"/>'
        f'<text x="{_NAMES + 92 * i + 14}" y="13">{escape(part)}</text>'
        for i, part in enumerate(parts)
    ]
    for row, (name, total) in enumerate(zip(names, totals, strict=True)):
        top, start = _TOP + _BAR * row + 4, 0.0
        shapes.append(f'<text class="end" x="{_NAMES - 6}" y="{top + 12}">{escape(name)}</text>')
        for i, (part, values) in enumerate(parts.items()):
            stop = start + values[row]
            shapes.append(
                f'<rect class="part{i}" x="{x(start):.1f}" y="{top}" height="{_BAR - 6}" '
                f'width="{x(stop) - x(start):.1f}"><title>{escape(part)}: {values[row]:.3g} '
                f"{escape(unit)}</title></rect>"
            )
            start = stop
        shapes.append(
            f'<text x="{x(total) + 4:.1f}" y="{top + 12}">{total:.3g} {escape(unit)}</text>'
        )
    return _svg(shapes, label, _TOP + _BAR * len(names) + 4)


def _x_axis(low: float, high: float) -> _Axis:
    margin = 0.02 * (high - low) or 0.02 * abs(high) or 1.0  # equal values get an axis as well
    return _Axis(low - margin, high + margin, _LEFT, _WIDTH - _RIGHT)


def _y_axis(low: float, high: float) -> _Axis:
    return _Axis(low, high * 1.05 or 1.0, _HEIGHT - _BOTTOM, _TOP)


def _axes(x: _Axis, y: _Axis, x_unit: str, y_unit: str) -> list[str]:
    across = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text class="tick end" x="{_LEFT - 6}" y="{y(t) + 4:.1f}">{t:g}</text>'
        for t in _rounded(y.ticks())
    ]
    along = [
        f'<text class="tick middle" x="{x(t):.1f}" y="{y(y.low) + 16:.1f}">{t:g}</text>'
        for t in _rounded(x.ticks())
    ]
    names = [
        f'<text class="unit middle" x="{(_LEFT + _WIDTH - _RIGHT) / 2:.1f}" y="{_HEIGHT - 6}">'
        f"{escape(x_unit)}</text>",
        f'<text class="unit" x="4" y="{_TOP - 6}">{escape(y_unit)}</text>',
    ]
    return [*across, *along, *names]


def _rounded(ticks: Sequence[float]) -> list[float]:
    return [float(f"{tick:.6g}") for tick in ticks]


def _svg(shapes: Sequence[str], label: str, height: int = _HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        + "".join(shapes)
        + "</svg>"
    )

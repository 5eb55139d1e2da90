"""Measuring tools shared by the benchmarks: rates, memory bandwidth, and a table of verdicts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternate(functions: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of what each function measures, in turn, so that a noisy minute hits all of them."""
    values: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            values[name].append(function())
    return {name: statistics.median(found) for name, found in values.items()}


def streaming_read_rate(rounds: int = 10, size: int = 2**28) -> float:
    """Bytes per second at which all threads together read uncached memory (best of `rounds`)."""
    import torch

    data = torch.ones(size // 4)
    # torch.sum reads slower than memory delivers; these two were the fastest readers measured.
    best = min(seconds(read) for _ in range(rounds) for read in (data.max, lambda: data.dot(data)))
    return size / best


def resident_bytes() -> int:
    """Resident memory of this process, files mapped into it included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmRSS line")


@dataclass
class Check:
    """One number against what it must reach; `at_least` False means it must stay below."""

    name: str
    value: float
    must: float
    aim: float | None = None
    at_least: bool = True
    unit: str = "x"

    def reaches(self, bound: float | None) -> bool:
        if bound is None:
            return False
        return self.value >= bound if self.at_least else self.value <= bound

    def row(self) -> str:
        sign = ">=" if self.at_least else "<="
        aim = (
            ""
            if self.aim is None
            else f"{sign} {self.aim:g} {'reached' if self.reaches(self.aim) else 'not reached'}"
        )
        verdict = "ok" if self.reaches(self.must) else "MISSED"
        value = f"{self.name:58} {self.value:9.2f} {self.unit:4}"
        return f"{value} must {sign} {self.must:<6g} {verdict:7} {aim}"


def show(checks: Sequence[Check]) -> bool:
    """Print the table. Returns: whether every `must` is met."""
    for check in checks:
        print(check.row())
    return all(check.reaches(check.must) for check in checks)

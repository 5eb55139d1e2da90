"""What is measured of a generation, and the figures made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

PERCENTILES = (50, 90, 95, 99, 100)


class Stage(str, Enum):
    """A stage of generation; the values are NxDI's names, and the keys of a report."""

    E2E = "e2e_model"
    PREFILL = "context_encoding_model"
    DECODE = "token_generation_model"

    @property
    def heading(self) -> str:
        return _HEADINGS[self]


_HEADINGS = {
    Stage.E2E: "End to end",
    Stage.PREFILL: "Prefill (time to first token)",
    Stage.DECODE: "Decode (per token)",
}
TARGETS = {
    "all": tuple(Stage),
    "e2e": (Stage.E2E,),
    "context_encode": (Stage.PREFILL,),
    "token_gen": (Stage.DECODE,),
}


@dataclass(frozen=True)
class Workload:
    """The request that is measured: `num_rows` prompts of `prompt_len` random tokens."""

    prompt_len: int
    new_tokens: int
    num_rows: int

    def __str__(self) -> str:
        prompts = "1 prompt" if self.num_rows == 1 else f"{self.num_rows} prompts"
        each = "" if self.num_rows == 1 else " each"
        return f"{prompts} with {self.prompt_len} tokens and {self.new_tokens} new tokens{each}"


@dataclass(frozen=True)
class RunTimes:
    """Seconds of one run: the whole, until the first token, and for each further token."""

    total: float
    first: float
    later: tuple[float, ...]

    def of(self, stage: Stage) -> tuple[float, ...]:
        """The latencies that count for a stage."""
        if stage is Stage.DECODE:
            return self.later
        return (self.total,) if stage is Stage.E2E else (self.first,)


@dataclass(frozen=True)
class Report:
    """All that was measured: the latencies of each run, and what they were measured on."""

    stages: tuple[Stage, ...]
    workload: Workload
    runs: tuple[RunTimes, ...]
    config: dict[str, str]
    machine: dict[str, str]
    measured_at: str

    def latencies_ms(self, stage: Stage) -> list[float]:
        """Every latency of a stage, run after run."""
        return [1000 * seconds for run in self.runs for seconds in run.of(stage)]

    def figures(self, stage: Stage) -> dict[str, float]:
        """`latency_ms_p50` to `latency_ms_p100`, `latency_ms_avg`, and `throughput`.

        `throughput` is in generated tokens per second, over all rows. Prefill has
        `prompt_tokens_per_second` besides.
        """
        latencies, rows = self.latencies_ms(stage), self.workload.num_rows
        mean = float(np.mean(latencies)) / 1000
        tokens = rows * (self.workload.new_tokens if stage is Stage.E2E else 1)
        figures = {**summarise(latencies), "throughput": tokens / mean}
        if stage is Stage.PREFILL:
            figures["prompt_tokens_per_second"] = rows * self.workload.prompt_len / mean
        return figures

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data: the figures under the stages' names, then what they rest on."""
        return {
            **{stage.value: self.figures(stage) for stage in self.stages},
            "workload": {**vars(self.workload), "num_runs": len(self.runs)},
            "config": self.config,
            "machine": self.machine,
            "measured_at": self.measured_at,
            "runs_ms": [
                {stage.value: [1000 * s for s in run.of(stage)] for stage in self.stages}
                for run in self.runs
            ],
        }


def summarise(latencies_ms: Sequence[float]) -> dict[str, float]:
    """Percentiles (linear between neighbours) and mean, under NxDI's names."""
    ranks = np.percentile(latencies_ms, PERCENTILES)
    named = {f"latency_ms_p{p}": float(rank) for p, rank in zip(PERCENTILES, ranks, strict=True)}
    return {**named, "latency_ms_avg": float(np.mean(latencies_ms))}

"""How long a step takes: a sum of what its work needs at fitted shares of the peak rates.

A sum and not the largest term: on the published measurements the parts of a step hardly overlap.
`benchmarks/planner.py` fits the shares and compares the result with those measurements.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch

from nxdi.tools.estimate.hardware import Hardware
from nxdi.tools.estimate.work import Work
from nxdi.types import Phase

_DECODE_FIT = "least squares over time per output token of the 42 published inf2 measurements"
_PREFILL_FIT = "least squares over time to first token of the 42 published inf2 measurements"


def _fitted(value: float, source: str) -> Any:
    return field(default=value, metadata={"source": source})


@dataclass(frozen=True)
class Efficiency:
    """Shares of peak rates that are reached, and the time a product takes to begin.

    A product follows on the one before it: instructions are fetched, the pipeline fills, results
    are written back. These times are counted per product, in microseconds.
    """

    compute: float = _fitted(0.26, _PREFILL_FIT)
    weights: float = _fitted(0.76, _DECODE_FIT)
    caches: float = _fitted(0.51, _DECODE_FIT)
    decode_product_us: float = _fitted(13.4, _DECODE_FIT)
    prefill_product_us: float = _fitted(40.5, _PREFILL_FIT)

    def product_us(self, phase: Phase) -> float:
        return self.decode_product_us if phase.is_decoding else self.prefill_product_us

    @classmethod
    def sources(cls) -> dict[str, str]:
        """Where each number comes from."""
        return {item.name: item.metadata["source"] for item in fields(cls)}


PUBLISHED = Efficiency()


@dataclass(frozen=True)
class Times:
    """Seconds by what they are spent on. draft: on making proposals for a verify step."""

    compute: float = 0.0
    memory: float = 0.0
    collectives: float = 0.0
    launch: float = 0.0
    draft: float = 0.0

    @property
    def total(self) -> float:
        return float(sum(vars(self).values()))

    @property
    def bound(self) -> str:
        """The name of the largest part."""
        parts = vars(self)
        return max(parts, key=parts.__getitem__)

    def scaled(self, factor: float) -> Times:
        return Times(**{name: factor * seconds for name, seconds in vars(self).items()})

    def __add__(self, other: Times) -> Times:
        return Times(**{name: own + getattr(other, name) for name, own in vars(self).items()})


def predict(
    work: Work,
    phase: Phase,
    hardware: Hardware,
    dtype: torch.dtype,
    efficiency: Efficiency = PUBLISHED,
) -> Times:
    """The time of one step on one rank; the others do the same at the same time.

    dtype: of the arithmetic.
    """
    rate = hardware.bytes_per_second
    streamed = work.weight_bytes + work.activation_bytes
    held = work.cache_bytes + work.written_bytes
    latency = work.num_collectives * hardware.collective_us * 1e-6
    return Times(
        compute=work.flops / (hardware.flops_per_second(dtype) * efficiency.compute),
        memory=streamed / (rate * efficiency.weights) + held / (rate * efficiency.caches),
        collectives=latency + work.collective_bytes / hardware.link_bytes_per_second,
        launch=work.num_products * efficiency.product_us(phase) * 1e-6,
    )

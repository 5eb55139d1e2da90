"""Kernels: what each operation means, what computes it, and the choice among candidates."""

from __future__ import annotations

from typing import Any

_SIMULATOR = ("Simulation", "lint", "measure_coverage", "nki_modules", "simulate")


def __getattr__(name: str) -> Any:
    """The simulator of NKI kernels, which nothing else needs, is imported when it is asked for."""
    if name in _SIMULATOR:
        from nxdi.kernels import sim

        return getattr(sim, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

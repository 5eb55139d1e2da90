"""The eager backend: the module itself on padded inputs.

The oracle, and the place for a breakpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from nxdi.graph.plan import GraphSpec
from nxdi.kernels.registry import Choice, platform
from nxdi.runtime.backend import Program, StepModule
from nxdi.types import Phase


class EagerRank:
    """Runs one rank's modules directly."""

    def __init__(self, modules: Mapping[Phase, StepModule], caches: list[Tensor]) -> None:
        self.modules = modules
        self.caches = caches

    def __call__(self, spec: GraphSpec, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad(), platform("generic"):
            outputs, new = self.modules[spec.phase].step(spec, inputs, self.caches)
            self.caches[:] = new
        return outputs


class EagerBackend:
    """Needs no compiler and writes no files."""

    name = "eager"

    def platform(self) -> str:
        return "any"

    def compiler_version(self) -> str:
        return "none"

    def compile(
        self, program: Program, folder: Path, report: Callable[[int, int, str], None]
    ) -> list[Choice]:
        return []

    def load(self, program: Program, folder: Path, weights: Mapping[str, Tensor]) -> EagerRank:
        modules = {}
        for phase in Phase:
            modules[phase] = program.build(phase)
            modules[phase].load_state_dict(weights, strict=True, assign=True)
            modules[phase].eval()
        return EagerRank(modules, program.make_caches(modules[Phase.DECODE]))

"""The eager backend: the module itself on padded inputs.

The oracle, and the place for a breakpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nxdi.graph.plan import GraphSpec
from nxdi.kernels.registry import Choice, platform
from nxdi.parallel_layers.groups import World
from nxdi.runtime.backend import Program, Report, StepModule
from nxdi.runtime.host_world import host_world
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

    def reset(self) -> None:
        for cache in self.caches:
            cache.zero_()


class EagerBackend:
    """Needs no compiler and writes no files."""

    name = "eager"

    def __init__(self, num_ranks: int = 1) -> None:
        self._num_ranks = num_ranks

    def platform(self) -> str:
        return "any"

    def compiler_version(self) -> str:
        return "none"

    def compile(self, program: Program, folder: Path, report: Report) -> list[Choice]:
        return []

    def world(self) -> World:
        return host_world(self._num_ranks)

    def load(
        self, program: Program, folder: Path, weights: Sequence[Mapping[str, Tensor]]
    ) -> list[EagerRank]:
        return [self._load(program, of_rank) for of_rank in weights]

    def _load(self, program: Program, weights: Mapping[str, Tensor]) -> EagerRank:
        modules = {}
        for phase in program.plan.phases:
            modules[phase] = program.build(phase)
            modules[phase].load_state_dict(weights, strict=True, assign=True)
            modules[phase].eval()
        return EagerRank(modules, program.make_caches(modules[Phase.DECODE]))

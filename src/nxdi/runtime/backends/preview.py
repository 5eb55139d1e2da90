"""Which kernels a graph would use, from a trace on fake tensors: nothing is compiled or computed.

The trace is coarser than the export that compiles a graph, and chooses kernels by the same code.
"""

from __future__ import annotations

import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from nxdi.graph.plan import GraphSpec
from nxdi.kernels.cpu import attend, int4, int8  # noqa: F401  register their kernels
from nxdi.kernels.registry import Choice, below, named_layers, platform
from nxdi.runtime.backend import Program, StepModule
from nxdi.runtime.backends.cpu.linear import use_linear_kernels
from nxdi.runtime.backends.cpu.pieces import (
    Part,
    Piece,
    example_arguments,
    layers_of_inputs,
    plan_parts,
)

_PLATFORMS = {"eager": "generic"}  # where its name is not that of the backend


def preview_kernels(program: Program, backend: str) -> dict[str, list[Choice]]:
    """For each planned graph, by name, the kernel of each operation and why others declined."""
    models = {phase: program.build(phase) for phase in {g.phase for g in program.plan.graphs}}
    return {spec.name: _choices(models[spec.phase], spec, backend) for spec in program.plan.graphs}


def _choices(model: StepModule, spec: GraphSpec, backend: str) -> list[Choice]:
    made: dict[str, set[Choice]] = {}
    choices: set[Choice] = set()
    for part in plan_parts(model, spec):
        if part.piece not in made:
            made[part.piece] = _trace(model, spec, part, backend)
        choices.update(below(part.path, made[part.piece]))
    return sorted(choices)


def _trace(model: StepModule, spec: GraphSpec, part: Part, backend: str) -> set[Choice]:
    arguments = example_arguments(model, part, spec)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    arguments = pytree.tree_map(fake.from_tensor, arguments)
    name = _PLATFORMS.get(backend, backend)
    with torch.no_grad(), named_layers(part.owner), platform(name) as choices:
        graph = make_fx(Piece(part), pre_dispatch=True)(*arguments)
    if backend == "cpu":
        choices |= use_linear_kernels(graph, layers_of_inputs(graph, part.owner))
    return choices

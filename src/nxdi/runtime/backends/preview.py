"""Which kernels a graph would use, from a trace on fake tensors: nothing is compiled or computed.

The trace is coarser than the export that compiles a graph, and chooses kernels by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from nxdi.graph.plan import GraphSpec
from nxdi.kernels.cpu import attend, int4, int8  # noqa: F401  register their kernels
from nxdi.kernels.neuron import candidates  # noqa: F401  as above
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

# Where its name is not that of the backend.
_PLATFORMS = {"eager": "generic", "neuron-dynamo": "neuron"}


def preview_kernels(
    program: Program, backend: str, options: Mapping[str, bool] | None = None
) -> dict[str, list[Choice]]:
    """For each planned graph, by name, the kernel of each operation and why others declined.

    options: about kernels of a Neuron device, as given.
    """
    models = {phase: program.build(phase) for phase in {g.phase for g in program.plan.graphs}}
    return {
        spec.name: _choices(models[spec.phase], spec, backend, options or {})
        for spec in program.plan.graphs
    }


def _choices(
    model: StepModule, spec: GraphSpec, backend: str, options: Mapping[str, bool]
) -> list[Choice]:
    made: dict[str, set[Choice]] = {}
    choices: set[Choice] = set()
    for part in plan_parts(model, spec):
        if part.piece not in made:
            arguments = example_arguments(model, part, spec)
            made[part.piece] = _trace(part, arguments, backend, options)
        choices.update(below(part.path, made[part.piece]))
    return sorted(choices)


def _trace(
    part: Part, arguments: tuple[Any, ...], backend: str, options: Mapping[str, bool]
) -> set[Choice]:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    arguments = pytree.tree_map(fake.from_tensor, arguments)
    name = _PLATFORMS.get(backend, backend)
    with torch.no_grad(), named_layers(part.owner), platform(name, options) as choices:
        graph = make_fx(Piece(part), pre_dispatch=True)(*arguments)
    if backend == "cpu":
        choices |= use_linear_kernels(graph, layers_of_inputs(graph, part.owner))
    return choices

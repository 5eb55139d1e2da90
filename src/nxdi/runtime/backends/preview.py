"""Which kernels a graph would use, from a trace on fake tensors: nothing is compiled or computed.

The trace is coarser than the export that compiles a graph, and chooses kernels by the same code.
"""

from __future__ import annotations

import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from nxdi.graph.plan import GraphSpec
from nxdi.kernels.cpu import attend as _kernels  # noqa: F401  registers the attend kernels
from nxdi.kernels.registry import Choice, platform
from nxdi.runtime.backend import Program, StepModule
from nxdi.runtime.backends.cpu.linear import use_linear_kernels
from nxdi.runtime.backends.cpu.pieces import Part, Piece, example_arguments, plan_parts

_PLATFORMS = {"eager": "generic"}  # where its name is not that of the backend


def preview_kernels(program: Program, backend: str) -> dict[str, list[Choice]]:
    """For each planned graph, by name, the kernel of each operation and why others declined."""
    models = {phase: program.build(phase) for phase in {g.phase for g in program.plan.graphs}}
    return {
        spec.name: _choices(models[spec.phase], spec, program.cache_dtype, backend)
        for spec in program.plan.graphs
    }


def _choices(
    model: StepModule, spec: GraphSpec, cache_dtype: torch.dtype, backend: str
) -> list[Choice]:
    parts = {part.piece: part for part in plan_parts(model, spec)}
    choices: set[Choice] = set()
    for part in parts.values():
        choices |= _trace(model, spec, part, cache_dtype, backend)
    return sorted(choices, key=lambda choice: (choice.op, choice.chosen))


def _trace(
    model: StepModule, spec: GraphSpec, part: Part, cache_dtype: torch.dtype, backend: str
) -> set[Choice]:
    arguments = example_arguments(model, part, spec, cache_dtype)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    arguments = pytree.tree_map(fake.from_tensor, arguments)
    with torch.no_grad(), platform(_PLATFORMS.get(backend, backend)) as choices:
        graph = make_fx(Piece(part), pre_dispatch=True)(*arguments)
    return choices | use_linear_kernels(graph) if backend == "cpu" else choices

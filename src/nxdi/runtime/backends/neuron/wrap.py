"""One graph as the SDK traces it: a module with named tensor inputs, and its caches as buffers."""

from __future__ import annotations

from functools import partial
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import Tensor, nn

from nxdi.graph.plan import GraphPlan, GraphSpec
from nxdi.runtime.backend import Program, StepModule

MODEL = "model."  # where the weights are below a step


def cache_name(index: int) -> str:
    """The buffer of one cache tensor."""
    return f"cache_{index}"


class Step(nn.Module):
    """A step of one graph: takes the graph's inputs by name, returns its outputs in order."""

    def __init__(
        self, model: StepModule, spec: GraphSpec, caches: list[Tensor], signature: Signature
    ) -> None:
        super().__init__()
        self.model, self.spec = model, spec
        self.cache_names = [cache_name(index) for index in range(len(caches))]
        for name, cache in zip(self.cache_names, caches, strict=True):
            self.register_buffer(name, cache)
        # Inputs differ between models. The SDK learns their names from the signature of forward,
        # calls it with keywords, and compiles no Python code.
        forward: Any = partial(self.run)
        forward.__signature__ = signature
        self.forward = forward

    def run(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        caches = [getattr(self, name) for name in self.cache_names]
        outputs, new = self.model.step(self.spec, inputs, caches)
        # Assigning a new tensor to a buffer of the root is the one form of state the SDK sees.
        for name, value in zip(self.cache_names, new, strict=True):
            setattr(self, name, value)
        return tuple(outputs[name] for name in self.spec.outputs)


def step_signature(plan: GraphPlan) -> Signature:
    """The parameters of every step of a model: the SDK wants the same of all its graphs.

    What only some graphs take comes last and defaults to None.
    """
    inputs = [[item.name for item in graph.inputs] for graph in plan.graphs]
    names = dict.fromkeys(name for of_graph in inputs for name in of_graph)
    is_common = {name: all(name in of_graph for of_graph in inputs) for name in names}
    kind = Parameter.POSITIONAL_OR_KEYWORD
    common = [Parameter(name, kind) for name in names if is_common[name]]
    others = [Parameter(name, kind, default=None) for name in names if not is_common[name]]
    return Signature([*common, *others])


def make_step(program: Program, spec: GraphSpec) -> Step:
    """The module to trace for `spec`, with parameters in memory but of no particular value."""
    model = program.build(spec.phase)
    caches = program.make_caches(model)
    _materialise(model)
    return Step(model, spec, caches, step_signature(program.plan))


def _materialise(model: StepModule) -> None:
    assert isinstance(model, nn.Module)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                zeros = torch.zeros_like(parameter, device="cpu")
                setattr(module, name, nn.Parameter(zeros, requires_grad=False))

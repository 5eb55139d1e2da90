"""What a backend is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from nxdi.graph.plan import GraphPlan, GraphSpec
from nxdi.kernels.registry import Choice
from nxdi.parallel_layers.groups import World
from nxdi.types import Phase


class StepModule(Protocol):
    """A model as the runtime sees it: a pure function of inputs and caches.

    `caches` is flat: the tensors of layer 0, then of layer 1, ...; `layer_caches` of them per
    layer.
    """

    layers: nn.ModuleList

    def step(
        self, spec: GraphSpec, inputs: Mapping[str, Tensor], caches: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor]]: ...

    def cache_shapes(self) -> list[tuple[int, ...]]:
        """Shape of every cache tensor on one rank."""
        ...

    def cache_dtypes(self) -> list[torch.dtype]:
        """The dtype of each of them."""
        ...

    @property
    def composes(self) -> bool:
        """Whether a step is embed, each layer in turn, last_hidden, head, feature_outputs.

        Each of them is then compiled for activations as `embed` gives them.
        """
        ...

    def embed(self, inputs: Mapping[str, Tensor]) -> Tensor: ...

    def layer_step(
        self,
        layer: nn.Module,
        spec: GraphSpec,
        x: Tensor,
        inputs: Mapping[str, Tensor],
        caches: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor]]: ...

    def last_hidden(self, x: Tensor, inputs: Mapping[str, Tensor]) -> Tensor: ...

    def head(self, x: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """After which layers `feature_outputs` wants the activations."""
        ...

    def feature_outputs(self, after: Mapping[int, Tensor]) -> dict[str, Tensor]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool, assign: bool
    ) -> object: ...

    def eval(self) -> object: ...


Report = Callable[[int, int, str], None]  # work done, of how much, and what is next


@dataclass(frozen=True)
class Program:
    """A model to compile or load: how to build it for a phase, without memory, and its graphs.

    compiler_args: the model's own arguments of the Neuron compiler; None: the backend's.
    """

    build: Callable[[Phase], StepModule]
    plan: GraphPlan
    compiler_args: str | None = None

    def make_caches(self, module: StepModule) -> list[Tensor]:
        """Empty caches of one rank, shared by all graphs of that rank."""
        caches = zip(module.cache_shapes(), module.cache_dtypes(), strict=True)
        return [torch.zeros(shape, dtype=dtype) for shape, dtype in caches]


class RankExecutable(Protocol):
    """All graphs of one rank (or of all that a device runs together), with weights and caches."""

    @property
    def caches(self) -> list[Tensor]:
        """The cache tensors of the (first) rank; copies where they live on a device."""
        ...

    def __call__(self, spec: GraphSpec, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run one graph; the caches are updated."""
        ...

    def reset(self) -> None:
        """Zero the caches."""
        ...


class Backend(Protocol):
    """One way to execute a plan."""

    name: str

    def platform(self) -> str:
        """The machine a compiled artefact is tied to."""
        ...

    def compiler_version(self) -> str:
        """What compiles the graphs, for the record."""
        ...

    def compile(self, program: Program, folder: Path, report: Report) -> list[Choice]:
        """Write the compiled graphs into `folder`; `report` as work proceeds."""
        ...

    def world(self) -> World:
        """Who runs the ranks, and which of them are here."""
        ...

    def load(
        self, program: Program, folder: Path, weights: Sequence[Mapping[str, Tensor]]
    ) -> Sequence[RankExecutable]:
        """Bind the weights of each local rank to the graphs in `folder`.

        Returns: what `world().run` is to call, in its order.
        """
        ...

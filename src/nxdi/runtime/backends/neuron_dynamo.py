"""EXPERIMENTAL: Neuron SDKs from 2.32 on, which compile what torch.compile hands them.

Written from public documentation alone and never run with such an SDK. Each graph is exported as
one function of inputs, caches and weights, and given to the SDK's torch.compile backend. One
process per rank; the SDK keeps compiled code in a cache of its own, so an artefact says only what
was captured.
Source: documentation of libtorch-neuronx-lite and vLLM Neuron, SDK 2.32.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nxdi import env
from nxdi.config import NeuronConfig, kernel_options, targets
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.graph.padding import only_padding
from nxdi.graph.plan import GraphSpec
from nxdi.kernels.neuron import candidates  # noqa: F401  registers the kernels
from nxdi.kernels.registry import Choice, platform
from nxdi.parallel_layers.groups import DistributedWorld, World
from nxdi.parallel_layers.xla_collectives import register_xla_kernels
from nxdi.runtime.backend import Program, Report, StepModule
from nxdi.runtime.backends.cpu.pieces import Part, Piece, tensors_of, whole_step
from nxdi.runtime.backends.neuron import flags, probe
from nxdi.runtime.host_world import host_world
from nxdi.types import Phase

CAPTURE, RUN = (
    "neuron_libtorch_graph_capture",
    "neuron_libtorch",
)  # the SDK's torch.compile backends
INDEX_FILE = "captured.json"
_PACKAGE = "libtorch-neuronx-lite"
_DEVICE = "neuron:0"  # of each process


class NeuronDynamoBackend:
    """One way to execute a plan; see the module.

    Raises: ConfigError if the config names no target that the SDK serves.
    """

    name = "neuron-dynamo"

    def __init__(self, config: NeuronConfig) -> None:
        named = env.neuron_target() or config.target
        if named is None:
            raise ConfigError("backend='neuron-dynamo' needs target; give trn2 or trn3")
        self._num_ranks, self._kernel_options = config.tp_degree, kernel_options(config)
        self._target = targets.find_target(named).name

    def platform(self) -> str:
        """The target, and the version that captured graphs are tied to."""
        return f"{self._target}, {_PACKAGE} {find_lite()}"

    def compiler_version(self) -> str:
        return f"neuronx-cc {probe.version_of('neuronx-cc')}"

    def world(self) -> World:
        """Raises: ConfigError unless torchrun started one process per rank."""
        world = host_world(self._num_ranks)
        if self._num_ranks > 1 and not isinstance(world, DistributedWorld):
            raise ConfigError(
                f"backend='neuron-dynamo' runs tp_degree={self._num_ranks} as that many processes; "
                f"start it with torchrun --nproc-per-node {self._num_ranks}"
            )
        return world

    def compile(self, program: Program, folder: Path, report: Report) -> list[Choice]:
        find_lite()
        graphs = program.plan.graphs
        environment, asked = flags.compile_env(self._target), self._kernel_options
        with env.defaults(environment), platform("neuron", asked) as choices:
            for done, spec in enumerate(graphs):
                report(done, len(graphs), spec.name)
                model: Any = program.build(spec.phase)
                weights = [torch.zeros_like(x, device="cpu") for x in tensors_of(model).values()]
                inputs, caches = list(only_padding(spec).values()), program.make_caches(model)
                captured = _capture(model, spec, (inputs, caches, weights), CAPTURE)
                captured([], inputs, caches, weights)
        names = [spec.name for spec in graphs]
        (folder / INDEX_FILE).write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
        return sorted(choices)

    def load(
        self, program: Program, folder: Path, weights: Sequence[Mapping[str, Tensor]]
    ) -> list[NeuronDynamoRank]:
        find_lite()
        register_xla_kernels()  # what the SDK lowers a graph with
        return [NeuronDynamoRank(program, of_rank, self._kernel_options) for of_rank in weights]


class NeuronDynamoRank:
    """The graphs of one rank on its device. A graph is compiled when it first runs."""

    def __init__(
        self, program: Program, weights: Mapping[str, Tensor], kernel_options: Mapping[str, bool]
    ) -> None:
        self._kernel_options = kernel_options
        self._models: dict[Phase, nn.Module] = {}
        for phase in program.plan.phases:
            module = program.build(phase)
            module.load_state_dict(weights, strict=True, assign=True)
            assert isinstance(module, nn.Module)
            self._models[phase] = module
        caches = program.make_caches(_step_module(self._models[Phase.DECODE]))
        self.caches = [x.to(_DEVICE) for x in caches]
        # All phases share their weights, on the device as here.
        tensors = {x.data_ptr(): x for m in self._models.values() for x in _tensors(m)}
        on_device = {address: x.detach().to(_DEVICE) for address, x in tensors.items()}
        self._weights = {
            phase: [on_device[x.data_ptr()] for x in _tensors(module)]
            for phase, module in self._models.items()
        }
        self._steps: dict[str, Callable[..., list[Tensor]]] = {}

    def __call__(self, spec: GraphSpec, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = self._weights[spec.phase]
        given = [inputs[item.name].to(_DEVICE) for item in spec.inputs]
        if spec.name not in self._steps:
            arguments = (list(only_padding(spec).values()), *map(_on_cpu, (self.caches, weights)))
            with platform("neuron", self._kernel_options):
                self._steps[spec.name] = _capture(self._models[spec.phase], spec, arguments, RUN)
        with torch.no_grad():
            results = self._steps[spec.name]([], given, self.caches, weights)
        return {name: x.cpu() for name, x in zip(spec.outputs, results, strict=True)}

    def reset(self) -> None:
        for cache in self.caches:
            cache.zero_()


def find_lite() -> str:
    """The version of the SDK's package. Raises: UnsupportedError saying what to install."""
    found = probe.version_of(_PACKAGE)
    try:
        importlib.import_module("libtorch_neuronx_lite.compile.backend")
    except Exception as error:  # a closed package fails in ways of its own
        raise UnsupportedError(
            f"{_PACKAGE} ({found}) cannot be imported: {error}; install it from Neuron SDK "
            "2.32 or later, or use backend='cpu'"
        ) from error
    return found


def _capture(
    model: nn.Module, spec: GraphSpec, arguments: tuple[Any, ...], backend: str
) -> Callable[..., list[Tensor]]:
    """One graph for a backend of torch.compile, which writes the caches in place at its root.

    It is exported first: Dynamo then sees plain operators, and no Python of the model.
    """
    part = Part(spec.name, model, whole_step(_step_module(model), spec), spec.inputs, slice(None))
    with torch.no_grad():
        graph = torch.export.export(Piece(part), ([], *arguments), strict=False).module()
    compiled: Any = torch.compile(graph, backend=backend, fullgraph=True, dynamic=False)
    return compiled  # type: ignore[no-any-return]  # a module is called like a function


def _step_module(model: nn.Module) -> StepModule:
    return model  # type: ignore[return-value]  # what a program builds has that form


def _tensors(module: nn.Module) -> list[Tensor]:
    return list(tensors_of(module).values())


def _on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Empty stand-ins to export with."""
    return [torch.empty_like(x, device="cpu") for x in tensors]

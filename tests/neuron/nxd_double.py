"""A neuronx_distributed that computes on the CPU and forgives nothing: the contract double.

Every call is bound to the published signature, every rule of the interface raises where it is
broken, and what is compiled really runs: every rank with its own weights and state.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from neuron.nxd_signatures import PUBLISHED, signature_of
from neuron.nxd_trace import ContractError, Hlo, form, trace_module
from nxdi.parallel_layers.groups import SimulatedWorld

VERSIONS = {
    "torch": "2.9.0",
    "torch-neuronx": "2.9.0.2.13.26312",
    "neuronx-cc": "2.24.8799",
    "neuronx-distributed": "0.18.27753",
}
_IN_MEMORY: dict[str, dict[str, Hlo]] = {}  # saved models by the name that their file holds
_COUNT = itertools.count()
_LOG = "log-neuron-cc.txt"


class Double:
    """The stand-in for one installation of the SDK.

    package: the module to use; calls: (name, arguments) of every call; args: of the compiler, by
    graph; is_durable: saved models are for other processes, too; failing: the log of the compiler,
    which then fails.
    """

    def __init__(self, is_durable: bool = False, versions: dict[str, str] | None = None) -> None:
        self.versions = {**VERSIONS, **(versions or {})}
        self.is_durable, self.failing = is_durable, ""
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.args: dict[str, str] = {}
        self.state: NxDParallelState | None = None
        functions = {
            name.removeprefix("trace.functions."): partial(
                _strict(name, getattr(self, f"_{name.split('.')[-1]}", None), self)
            )
            for name in PUBLISHED
            if name.startswith("trace.functions.")
        }
        self.package = SimpleNamespace(
            NxDParallelState=self._published(NxDParallelState),
            NxDModel=self._published(NxDModel),
            ModelBuilder=self._published(type("ModelBuilder", (), {})),
            shard_checkpoint=functions["shard_checkpoint"],
            trace=SimpleNamespace(functions=SimpleNamespace(**functions)),
        )

    def calls_of(self, name: str) -> list[dict[str, Any]]:
        return [arguments for called, arguments in self.calls if called == name]

    def install(self, replace: Callable[[Any, str, Any], None] = setattr) -> None:
        """Make nxdi find this SDK and a device; `replace` sets an attribute."""
        from nxdi.runtime.backends.neuron import backend, probe

        replace(probe, "find_sdk", lambda: probe.Sdk(self.package, self.versions))
        replace(probe, "neuron_devices", lambda: [Path("/dev/neuron0")])
        replace(backend, "register_xla_kernels", lambda: None)

    def _published(self, cls: type) -> Any:
        """A class whose published methods are strict, and the others of them refuse."""
        methods: dict[str, Any] = {"double": self}
        for name in PUBLISHED:
            owner, _, method = name.rpartition(".")
            if owner == cls.__name__:
                found = vars(cls).get(method)
                is_of_class = isinstance(found, classmethod)
                strict = _strict(name, found.__func__ if is_of_class else found, self)
                methods[method] = classmethod(strict) if is_of_class else strict
        if "forward" in methods:
            methods["__call__"] = methods["forward"]
        return type(cls.__name__, (cls,), methods)

    def _trace(
        self,
        model: Any,
        args: Any = None,
        kwargs: Any = None,
        spmd: bool = True,
        preserve_parameters: bool = True,
        weights_to_skip_layout_optimization: Any = None,
    ) -> SimpleNamespace:
        if self.state is None:
            raise ContractError("trace outside NxDParallelState")
        if not spmd:
            raise ContractError("spmd=False is not supported")
        hlo = trace_module(model, args, kwargs, self.state.world_size, self.state.lnc_size)
        indices = {name: i for i, name in enumerate(hlo.weights)}
        return SimpleNamespace(hlo=hlo, metaneff=Metaneff(hlo), weight_name_to_idx=indices)

    def _compile(
        self,
        hlo_module: Any,
        metaneff: Any,
        compiler_workdir: Any = None,
        compiler_args: str | None = None,
        key: str | None = None,
    ) -> Neff:
        if not isinstance(hlo_module, Hlo) or not isinstance(metaneff, Metaneff):
            raise ContractError("compile needs the HLO and the metaneff of a trace")
        if metaneff.hlo is not hlo_module:
            raise ContractError("the metaneff is of another trace")
        name = key or f"model_{hlo_module.digest[:8]}"
        folder = Path(compiler_workdir) / name / str(next(_COUNT))
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "graph.hlo").write_bytes(hlo_module.SerializeToString())
        _check_args(compiler_args or "", hlo_module.logical_size)
        self.args[name] = compiler_args or ""
        (folder / _LOG).write_text(self.failing or "Compiler status PASS\n", encoding="utf-8")
        if self.failing:
            cause = RuntimeError("neuronx-cc exited with 70")
            raise RuntimeError(f"Compilation failed for {name}") from cause
        neff = folder / "graph.neff"
        neff.write_text(hlo_module.digest)
        (folder / "metaneff.pb").write_bytes(metaneff.SerializeToString())
        return Neff(str(neff))


def _strict(name: str, function: Any, double: Double) -> Any:
    signature = signature_of(name)
    is_method = not name.startswith("trace.functions.")

    def call(*args: Any, **kwargs: Any) -> Any:
        receiver, given = (args[:1], args[1:]) if is_method else ((), args)
        try:
            bound = signature.bind(*given, **kwargs)
        except TypeError as error:
            raise ContractError(f"{name}: {error}") from error
        double.calls.append((name, dict(bound.arguments)))
        if function is None:
            raise ContractError(f"{name} is published, but the double does not compute it")
        return function(*receiver, *bound.args, **bound.kwargs)

    return call


def _check_args(args: str, logical_size: int | None) -> None:
    """The arguments can be split, name nothing twice, and fit the parallel state."""
    options = [part for part in shlex.split(args) if part.startswith("-")]
    names = ["-O" if part.startswith("-O") else part.partition("=")[0] for part in options]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ContractError(f"compiler arguments repeated: {sorted(twice)}")
    size = re.search(r"--(?:lnc|logical-nc-config)[= ](\d)", args)
    if size is None or logical_size is None or int(size[1]) != logical_size:
        raise ContractError(f"lnc_size={logical_size} was traced, and {args!r} compiled")
    target = re.search(r"--target[= ](\w+)", args)
    if target and target[1] != os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE", target[1]):
        raise ContractError(f"{target[0]} contradicts NEURON_PLATFORM_TARGET_OVERRIDE")


class Metaneff:
    """What the runtime must know of a graph's tensors."""

    def __init__(self, hlo: Hlo) -> None:
        self.hlo = hlo

    def SerializeToString(self) -> bytes:
        return repr((self.hlo.inputs, self.hlo.weights, self.hlo.states)).encode()


class Neff:
    """CompilationArtifacts."""

    def __init__(self, neff_filepath: str) -> None:
        self.neff_filepath = neff_filepath


class NxDParallelState:
    """The context of tracing for `world_size` ranks."""

    double: ClassVar[Double]

    def __init__(self, world_size: int = 1, rank: int = 0, **sizes: Any) -> None:
        self.world_size, self.lnc_size = world_size, sizes.pop("lnc_size", None)
        product = 1
        for size in sizes.values():
            product *= size
        if world_size % product or rank:
            raise ContractError(f"a world of {world_size} ranks for the sizes {sizes}")

    def __enter__(self) -> NxDParallelState:
        if self.double.state is not None:
            raise ContractError("NxDParallelState entered twice")
        self.double.state = self
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        self.double.state = None


class NxDModel:
    """Compiled graphs of all local ranks, on their devices."""

    double: ClassVar[Double]

    def __init__(
        self,
        world_size: int,
        start_rank: int | None = None,
        local_ranks_size: int | None = None,
        state_initializer: Any = None,
        layout_transformer: Any = None,
    ) -> None:
        if (start_rank is None) != (local_ranks_size is None):
            raise ContractError("start_rank and local_ranks_size go together")
        self.world_size, self.start_rank = world_size, start_rank or 0
        self.num_local = world_size if local_ranks_size is None else local_ranks_size
        if not 0 <= self.start_rank <= world_size - self.num_local:
            raise ContractError(f"ranks from {start_rank} on, of {world_size}")
        self.graphs: dict[str, Hlo] = {}
        self.weights: list[dict[str, Tensor]] | None = None
        self.states: list[dict[str, Tensor]] | None = None  # once on the device

    def add(self, key: str, trace_artifacts: Any, compilation_artifacts: Any) -> NxDModel:
        hlo: Hlo = trace_artifacts.hlo
        if key in self.graphs:
            raise ContractError(f"a graph {key} was added before")
        if Path(compilation_artifacts.neff_filepath).read_text() != hlo.digest:
            raise ContractError(f"the NEFF of {key} was compiled from another trace")
        if hlo.world_size != self.world_size:
            raise ContractError(f"{key} was traced for {hlo.world_size} ranks")
        first = next(iter(self.graphs.values()), hlo)
        if hlo.parameters != first.parameters:
            raise ContractError(f"forward of {key} takes {hlo.parameters}, not {first.parameters}")
        if hlo.states != first.states:
            raise ContractError(f"{key} has other states than the first graph: {hlo.states}")
        for name, wanted in first.weights.items():
            if hlo.weights.get(name, wanted) != wanted:
                raise ContractError(f"weight {name} of {key} has another form")
        self.graphs[key] = hlo
        return self

    def get_available_keys(self) -> set[str]:
        return set(self.graphs)

    def get_hlo(self, key: str) -> Hlo:
        return self.graphs[key]

    def set_weights(self, sharded_checkpoint: list[dict[str, Tensor]]) -> None:
        if self.states is not None:
            raise ContractError("set_weights after to_neuron; use replace_weights")
        if len(sharded_checkpoint) != self.num_local:
            raise ContractError(f"{len(sharded_checkpoint)} ranks' weights for {self.num_local}")
        for rank, weights in enumerate(sharded_checkpoint):
            for hlo in self.graphs.values():
                for name, wanted in hlo.weights.items():
                    found = form(weights[name]) if name in weights else "missing"
                    if found != wanted:
                        raise ContractError(f"rank {rank}: weight {name} {found}, not {wanted}")
            if wrong := [name for name, tensor in weights.items() if tensor.is_meta]:
                raise ContractError(f"rank {rank}: weights without memory: {wrong}")
        self.weights = [dict(weights) for weights in sharded_checkpoint]

    def to_neuron(self) -> None:
        if self.weights is None:
            raise ContractError("to_neuron before set_weights")
        states = next(iter(self.graphs.values())).states
        self.states = [
            {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in states.items()}
            for _ in range(self.num_local)
        ]

    def forward(
        self,
        *args: Tensor,
        model_name: str | None = None,
        forward_mode: str = "default",
        **kwargs: Tensor,
    ) -> Any:
        if self.states is None or self.weights is None:
            raise ContractError("called before set_weights and to_neuron")
        if forward_mode != "default":
            raise ContractError(f"the double does not compute forward_mode={forward_mode!r}")
        if self.num_local != self.world_size:
            raise ContractError("the ranks of the other nodes are not in this process")
        names = [name for name, _ in next(iter(self.graphs.values())).parameters]
        inputs = dict(zip(names, args, strict=False)) | kwargs
        hlo = self._route(inputs, model_name)
        steps = [
            partial(hlo.run, weights, states, inputs)
            for weights, states in zip(self.weights, self.states, strict=True)
        ]
        results = steps[0]() if len(steps) == 1 else SimulatedWorld(len(steps)).run(steps)[0]
        return results[0] if len(results) == 1 else tuple(results)

    def _route(self, inputs: dict[str, Tensor], model_name: str | None) -> Hlo:
        """By names and shapes alone, as the SDK does; then by the name of the graph."""
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        fitting = [
            key
            for key, hlo in self.graphs.items()
            if {name: shape for name, (shape, _) in hlo.inputs.items()} == shapes
        ]
        if not fitting:
            raise ContractError(f"no graph for inputs of {shapes}")
        if model_name is None and len(fitting) > 1:
            raise ContractError(f"model_name must say which of {fitting}")
        if model_name is not None and model_name not in fitting:
            raise ContractError(f"model_name={model_name!r}, but the shapes are of {fitting}")
        hlo = self.graphs[model_name or fitting[0]]
        for name, tensor in inputs.items():
            if form(tensor) != hlo.inputs[name]:
                raise ContractError(f"input {name} is {tensor.dtype}, not {hlo.inputs[name][1]}")
        return hlo

    def read_from_neuron_buffer(self, buffer_key: str, rank: int) -> Tensor:
        return self._buffer(buffer_key, rank).clone()

    def write_to_neuron_buffer(self, tensor: Tensor, buffer_key: str, rank: int) -> None:
        buffer = self._buffer(buffer_key, rank)
        if form(tensor) != form(buffer):
            raise ContractError(f"{form(tensor)} written to {buffer_key} of {form(buffer)}")
        buffer.copy_(tensor)

    def _buffer(self, key: str, rank: int) -> Tensor:
        if self.states is None or self.weights is None:
            raise ContractError("a buffer asked for before to_neuron")
        if rank not in range(self.num_local):
            raise ContractError(f"rank {rank} of {self.num_local} local ones")
        found = {**self.weights[rank], **self.states[rank]}
        if key not in found:
            raise ContractError(f"no buffer {key} in rank {rank}")
        return found[key]

    def save(self, path_to_save: str, save_weights: bool = False) -> None:
        if save_weights:
            raise ContractError("the double saves no weights")
        model: Any = self.graphs
        if not self.double.is_durable:
            model = f"model {next(_COUNT)}"
            _IN_MEMORY[model] = self.graphs
        torch.save((self.double.versions, self.world_size, model), path_to_save)

    @classmethod
    def load(
        cls,
        path_to_model: str,
        start_rank: int | None = None,
        local_ranks_size: int | None = None,
    ) -> NxDModel:
        # Only tests read this file, and they wrote it: it holds graphs, which are code.
        versions, world_size, model = torch.load(path_to_model, weights_only=False)
        if versions != cls.double.versions:
            return SimpleNamespace()  # type: ignore[return-value]  # a ScriptModule, as documented
        loaded = cls(world_size, start_rank, local_ranks_size)
        loaded.graphs = _IN_MEMORY[model] if isinstance(model, str) else model
        return loaded

"""From the graphs of a model to HLO, through torch_xla on its CPU device.

The same step modules that the neuron backend traces are run on lazy tensors and lowered. Nothing is
compiled for a device, and no Neuron SDK is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nxdi.errors import UnsupportedError
from nxdi.graph.padding import only_padding
from nxdi.graph.plan import GraphSpec
from nxdi.kernels.registry import platform
from nxdi.parallel_layers.xla_collectives import register_xla_kernels
from nxdi.runtime.backend import Program
from nxdi.runtime.backends.neuron.wrap import make_step


@dataclass(frozen=True)
class Lowered:
    """One graph as HLO.

    parameters: the name of each HLO parameter, in order; torch_xla makes one of every Python number
    in a computation, and those are called "constant".
    constants: their values, by parameter number.
    aliases: output number -> the parameter that holds the cache it replaces.
    """

    spec: GraphSpec
    proto: bytes
    text: str
    parameters: tuple[str, ...]
    constants: dict[int, Tensor]
    aliases: dict[int, int]


def lower_graph(program: Program, spec: GraphSpec, num_ranks: int) -> Lowered:
    """HLO of the program that every one of `num_ranks` ranks runs.

    Raises: UnsupportedError where torch_xla is not installed.
    """
    xla = import_torch_xla()
    register_xla_kernels()
    device = xla.device()
    step = make_step(program, spec).to(device)
    inputs = {name: x.to(device) for name, x in only_padding(spec).items()}
    before = {**dict(step.named_parameters()), **dict(step.named_buffers()), **inputs}
    names = {_xla_id(xla, x): name for name, x in before.items()}
    with _world_size(xla, num_ranks), _no_collective_order(xla, device), torch.no_grad():
        with platform("neuron"):
            outputs = list(step(**inputs))
        results = [*outputs, *(getattr(step, name) for name in step.cache_names)]
        context = xla._XLAC.lowering.LoweringContext(spec.name)
        context.build(results)
    proto = context.hlo()
    computation = xla._XLAC._xla_op_computation_from_module_proto(spec.name, proto)
    text = xla._XLAC._xla_computation_text(computation)
    numbers = {
        names[_xla_id(xla, x)]: number
        for x in before.values()
        if (number := context.tensor_parameter_id(x)) >= 0
    }
    values = context.parameter_id_tensor_mapping()
    by_number = {number: name for name, number in numbers.items()}
    aliases = {
        len(outputs) + index: numbers[name]
        for index, name in enumerate(step.cache_names)
        if name in numbers
    }
    parameters = tuple(by_number.get(number, "constant") for number in range(len(values)))
    constants = {n: values[n] for n, name in enumerate(parameters) if name == "constant"}
    return Lowered(spec, proto, text, parameters, constants, aliases)


def import_torch_xla() -> Any:
    """Raises: UnsupportedError saying what to install."""
    try:
        import torch_xla
    except ImportError as error:
        raise UnsupportedError(
            f"lowering needs torch_xla, which cannot be imported ({error}); make an environment "
            "with torch==2.9.0, torch_xla==2.9.0 and numpy<2.3"
        ) from error
    return torch_xla


def _xla_id(xla: Any, x: Tensor) -> int:
    found: int = xla._XLAC._xla_get_tensor_id(x)
    return found


@contextmanager
def _world_size(xla: Any, num_ranks: int) -> Iterator[None]:
    """Within the block torch_xla keeps collectives, which it drops in a world of one process."""
    import torch_xla.runtime

    before = torch_xla.runtime.world_size
    torch_xla.runtime.world_size = lambda: num_ranks
    try:
        yield
    finally:
        torch_xla.runtime.world_size = before


@contextmanager
def _no_collective_order(xla: Any, device: Any) -> Iterator[None]:
    """Collectives of one graph are chained by a token; the next graph must not hang on it."""
    try:
        yield
    finally:
        xla._XLAC._set_all_reduce_token(str(device), None)

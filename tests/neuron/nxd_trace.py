"""What the double's `trace` does: one program for every rank, from a module that keeps the rules.

The module runs on tensors without memory, on a device that is not the CPU, as rank 0: a tensor made
on another device, or a Python value read from a tensor, is an error, as it is for the real tracer.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

Form = tuple[tuple[int, ...], torch.dtype]
_WIDE = (torch.int64, torch.float64)


class ContractError(Exception):
    """The SDK would refuse this, or do something else than what was meant."""


@dataclass
class Hlo:
    """A traced program: tensors in the order of `weights`, `states`, `inputs`; new states last."""

    graph: GraphModule
    inputs: dict[str, Form]
    weights: dict[str, Form]
    states: dict[str, Form]
    parameters: list[tuple[str, bool]]  # of forward: name, and whether it must be given
    world_size: int
    logical_size: int | None

    def SerializeToString(self) -> bytes:
        forms = repr((self.inputs, self.weights, self.states, self.world_size))
        return f"{forms}\n{self.graph.code}".encode()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.SerializeToString()).hexdigest()

    def run(
        self,
        weights: Mapping[str, Tensor],
        states: dict[str, Tensor],
        inputs: Mapping[str, Tensor],
    ) -> list[Tensor]:
        """One step of one rank: its outputs; `states` are replaced."""
        ordered = [weights[name] for name in self.weights]
        ordered += [states[name] for name in self.states]
        ordered += [inputs[name] for name in self.inputs]
        with torch.no_grad():
            results = list(self.graph(*ordered))
        count = len(results) - len(self.states)
        states.update(zip(self.states, results[count:], strict=True))
        return results[:count]


def trace_module(
    model: nn.Module, args: Any, kwargs: Any, world_size: int, logical_size: int | None
) -> Hlo:
    """Raises: ContractError for a module or inputs that the SDK cannot trace."""
    parameters = _forward_parameters(model)
    inputs = _example_inputs(parameters, args, kwargs)
    placed = _place_on_device(model)
    places = {name: tensor.to("meta") for name, tensor in inputs.items()}
    found: dict[str, Any] = {}

    def program(*tensors: Tensor) -> list[Tensor]:
        outputs = model(**dict(zip(inputs, tensors[len(placed) :], strict=True)))
        found["states"] = _new_states(model, placed)
        results = _flat(outputs)
        return results + list(found["states"].values())

    tensors = [*placed.values(), *places.values()]
    with torch.no_grad():
        graph = make_fx(program, pre_dispatch=True)(*tensors)
    nodes = [node for node in graph.graph.nodes if node.op == "placeholder"]
    names = dict(zip(nodes, [*placed, *inputs], strict=True))
    _check_graph(graph, names, world_size)
    states = found["states"]
    weights = [name for name in placed if name not in states]
    used = _reorder(graph, nodes, names, weights, [*states, *inputs])
    return Hlo(
        graph,
        {name: form(tensor) for name, tensor in inputs.items()},
        {name: form(placed[name]) for name in used},
        {name: form(placed[name]) for name in states},
        [(name, parameter.default is Parameter.empty) for name, parameter in parameters.items()],
        world_size,
        logical_size,
    )


def form(tensor: Tensor) -> Form:
    return tuple(tensor.shape), tensor.dtype


def _forward_parameters(model: nn.Module) -> Mapping[str, Parameter]:
    parameters = inspect.signature(model.forward).parameters
    if not parameters:
        raise ContractError("forward must take at least one input")
    for name, parameter in parameters.items():
        if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            raise ContractError(f"forward takes *{name}; every input must be named")
        if parameter.default not in (Parameter.empty, None):
            raise ContractError(f"{name}={parameter.default!r}: a default can only be None")
    return parameters


def _example_inputs(parameters: Mapping[str, Parameter], args: Any, kwargs: Any) -> dict[str, Any]:
    args = () if args is None else args if isinstance(args, tuple) else (args,)
    given = dict(zip(parameters, args, strict=False)) | dict(kwargs or {})
    if len(args) > len(parameters) or (given.keys() - parameters.keys()):
        raise ContractError(f"inputs {list(given)} for the parameters {list(parameters)}")
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise ContractError(f"input {name} is a {type(value).__name__}, not a tensor")
        if value.dtype in _WIDE:
            raise ContractError(f"input {name} is {value.dtype}; the edges are at most 32 bits")
    missing = [n for n, p in parameters.items() if p.default is Parameter.empty and n not in given]
    if missing or not given:
        raise ContractError(f"no example of the inputs {missing}")
    return {name: given[name] for name in parameters if name in given}


def _place_on_device(model: nn.Module) -> dict[str, Tensor]:
    """Put every parameter and buffer on the device, and return them by their first name."""
    names: dict[int, str] = {}
    placed: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for slots in (module._parameters, module._buffers):
            for leaf, tensor in slots.items():
                if tensor is None:
                    continue
                if tensor.is_meta:
                    raise ContractError(f"{path}.{leaf} has no memory, so it cannot be traced")
                name = names.setdefault(id(tensor), f"{path}.{leaf}".removeprefix("."))
                placed.setdefault(name, tensor.detach().to("meta"))
                slots[leaf] = placed[name]  # type: ignore[assignment]  # as the tracer does
    return placed


def _new_states(model: nn.Module, placed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Buffers of the root that forward assigned anew, by name."""
    originals = {id(tensor) for tensor in placed.values()}
    states = {}
    for path, module in model.named_modules():
        for slots in (module._parameters, module._buffers):
            for leaf, tensor in slots.items():
                if tensor is None or id(tensor) in originals:
                    continue
                name = f"{path}.{leaf}".removeprefix(".")
                if path or slots is module._parameters or name not in placed:
                    raise ContractError(f"{name} was assigned; only buffers of the root are state")
                if form(tensor) != form(placed[name]):
                    raise ContractError(f"state {name} became {form(tensor)}")
                states[name] = tensor
    return states


def _flat(outputs: Any) -> list[Tensor]:
    results = [outputs] if isinstance(outputs, Tensor) else outputs
    is_flat = isinstance(results, (tuple, list)) and all(isinstance(x, Tensor) for x in results)
    if not is_flat or not results:
        raise ContractError("forward must return tensors, in one flat tuple")
    if wide := [x.dtype for x in results if x.dtype in _WIDE]:
        raise ContractError(f"an output is {wide[0]}; the edges are at most 32 bits")
    return list(results)


def _check_graph(graph: GraphModule, names: Mapping[Node, str], world_size: int) -> None:
    """No input, weight or state is written in place, and each rank is in every collective."""
    for node in graph.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        schema = node.target._schema
        for argument, value in zip(schema.arguments, node.args, strict=False):
            writes = argument.alias_info is not None and argument.alias_info.is_write
            if writes and isinstance(value, Node) and (base := _base_of(value)) in names:
                raise ContractError(f"{node.target} writes {names[base]} in place")
            if argument.name == "mesh" and sorted(value) != list(range(world_size)):
                raise ContractError(f"{node.target} over {value} in a world of {world_size}")


def _base_of(node: Node) -> Node:
    """The tensor that `node` is a view of."""
    while isinstance(node.target, torch._ops.OpOverload):
        pairs = zip(node.target._schema.arguments, node.args, strict=False)
        viewed = [v for a, v in pairs if a.alias_info is not None and isinstance(v, Node)]
        if not viewed:
            break
        node = viewed[0]
    return node


def _reorder(
    graph: GraphModule,
    nodes: Sequence[Node],
    names: Mapping[Node, str],
    weights: Sequence[str],
    others: Sequence[str],
) -> list[str]:
    """Put the inputs of the graph in order, without weights nothing uses, on the CPU."""
    by_name = {names[node]: node for node in nodes}
    used = [name for name in weights if by_name[name].users]
    for name in set(weights) - set(used):
        graph.graph.erase_node(by_name[name])
    body = next(node for node in graph.graph.nodes if node.op != "placeholder")
    for name in [*used, *others]:
        body.prepend(by_name[name])
    for node in graph.graph.nodes:
        node.args = tuple(map(_on_cpu, node.args))
        node.kwargs = {name: _on_cpu(value) for name, value in node.kwargs.items()}
        node.meta.clear()
    graph.graph.set_codegen(torch.fx.graph.CodeGen())
    graph.recompile()
    return used


def _on_cpu(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) else value

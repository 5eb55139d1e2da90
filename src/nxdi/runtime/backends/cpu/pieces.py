"""How a step is cut into pieces that are compiled once each: every kind of layer, and the head.

Compiling a whole graph costs time in proportion to its layers, which are mostly alike. A piece
takes everything as inputs, weights and caches too, so one compiled layer serves all layers of its
kind. The embedding and the choice of the last token are table look-ups that gain nothing from a
compiler: they run as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nxdi.config import InferenceConfig
from nxdi.graph.inputs import BLOCKS, TOKENS, InputSpec
from nxdi.graph.plan import FEATURES, GraphSpec
from nxdi.runtime.backend import StepModule

# (leading tensors, step inputs by name, caches) -> (results, new caches)
StepFunction = Callable[
    [Sequence[Tensor], Mapping[str, Tensor], Sequence[Tensor]], tuple[list[Tensor], list[Tensor]]
]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, derived ones included: what a piece takes as its weights."""
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}


def layers_of_inputs(graph: torch.fx.GraphModule, owner: nn.Module) -> dict[str, str]:
    """The layer of each weight of `owner`, which are the last inputs of a graph, by their names."""
    layers = [name.rpartition(".")[0] for name in tensors_of(owner)]
    inputs = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    return dict(zip(inputs[len(inputs) - len(layers) :], layers, strict=True))


class _Call(nn.Module):
    """A function of a module's tensors, in the form that functional_call understands."""

    def __init__(self, owner: nn.Module, function: StepFunction) -> None:
        super().__init__()
        self.owner, self.function = owner, function

    def forward(self, *args: Any) -> tuple[list[Tensor], list[Tensor]]:
        return self.function(*args)


@dataclass(frozen=True)
class Part:
    """One call within a step: the piece, whose weights, which step inputs and caches.

    path: the owner's name in the model.
    """

    piece: str
    owner: nn.Module
    function: StepFunction
    inputs: tuple[InputSpec, ...]
    caches: slice
    path: str = ""


class Piece(nn.Module):
    """What is compiled for a part: a module whose every tensor, weights included, is an input.

    State is written here and nowhere else: at the root of a graph, in place.
    """

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.input_names = [item.name for item in part.inputs]
        self.weight_names = [f"owner.{name}" for name in tensors_of(part.owner)]
        # In a tuple, so that the parameters of the owner do not become constants of the graph.
        self._hidden = (_Call(part.owner, part.function),)

    def forward(
        self,
        leading: list[Tensor],
        inputs: list[Tensor],
        caches: list[Tensor],
        weights: list[Tensor],
    ) -> list[Tensor]:
        named = dict(zip(self.weight_names, weights, strict=True))
        by_name = dict(zip(self.input_names, inputs, strict=True))
        results: list[Tensor]
        results, new = functional_call(self._hidden[0], named, (leading, by_name, caches))
        for cache, value in zip(caches, new, strict=True):
            cache.copy_(value)
        return results


def plan_parts(model: StepModule, spec: GraphSpec) -> list[Part]:
    """The calls that make up one step of `spec`, in order.

    A model whose step is its own is one part.
    """
    shapes = model.cache_shapes()
    if not model.composes:
        owner = _as_module(model)
        return [
            Part(
                f"{spec.name}/whole",
                owner,
                whole_step(model, spec),
                spec.inputs,
                slice(0, len(shapes)),
            )
        ]
    per_layer = len(shapes) // len(model.layers)
    kinds: dict[object, str] = {}
    parts = []
    for index, layer in enumerate(model.layers):
        caches = slice(index * per_layer, (index + 1) * per_layer)
        kind = (structure(layer), tuple(shapes[caches]))
        piece = kinds.setdefault(kind, f"{spec.name}/layer{len(kinds)}")
        function, path = _layer(model, layer, spec), f"layers.{index}"
        parts.append(Part(piece, layer, function, spec.inputs, caches, path))
    # The head sees one token per row: without what varies with a graph's length it is the same in
    # every graph of a batch size.
    per_row = tuple(item for item in spec.inputs if not {TOKENS, BLOCKS} & set(item.dims))
    parts.append(Part(f"{spec.name}/head", _Ends(model), _head(model, spec), per_row, slice(0, 0)))
    return parts


class _Ends(nn.Module):
    """The modules of a model outside its layers."""

    def __init__(self, model: StepModule) -> None:
        super().__init__()
        for name, child in _as_module(model).named_children():
            if name not in ("layers", "embed_tokens"):
                self.add_module(name, child)


def _as_module(model: StepModule) -> nn.Module:
    assert isinstance(model, nn.Module)
    return model


def _layer(model: StepModule, layer: nn.Module, spec: GraphSpec) -> StepFunction:
    def run(
        leading: Sequence[Tensor], inputs: Mapping[str, Tensor], caches: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        x, new = model.layer_step(layer, spec, leading[0], inputs, caches)
        return [x], new

    return run


def _head(model: StepModule, spec: GraphSpec) -> StepFunction:
    def run(
        leading: Sequence[Tensor], inputs: Mapping[str, Tensor], caches: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        outputs = model.head(leading[0], inputs)
        return [outputs[name] for name in head_outputs(spec)], []

    return run


def head_outputs(spec: GraphSpec) -> list[str]:
    """The outputs of a graph that its head computes; features are gathered on the way to it."""
    return [name for name in spec.outputs if name != FEATURES]


def whole_step(model: StepModule, spec: GraphSpec) -> StepFunction:
    def run(
        leading: Sequence[Tensor], inputs: Mapping[str, Tensor], caches: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        outputs, new = model.step(spec, inputs, caches)
        return [outputs[name] for name in spec.outputs], new

    return run


def structure(module: nn.Module) -> object:
    """A hashable description of all that a module's program may depend on, except tensor values.

    Equal descriptions mean equal programs. Attributes are compared by their repr: an object that
    shows only its address differs from every other, which costs a compilation, never a wrong
    result.
    """
    plain = {
        name: _described(value)
        for name, value in vars(module).items()
        if name not in ("_parameters", "_buffers", "_modules")
    }
    tensors = tuple((name, tuple(t.shape), t.dtype) for name, t in tensors_of(module).items())
    children = tuple((name, structure(child)) for name, child in module.named_children())
    return type(module), tuple(sorted(plain.items())), tensors, children


def digest(tensor: Tensor) -> str:
    """Hash of a tensor's dtype, shape and values."""
    data = tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(data).hexdigest()}"


def _described(value: object) -> str:
    if isinstance(value, Tensor):  # its repr leaves out the middle
        return digest(value)
    if isinstance(value, InferenceConfig):  # its repr is its address
        return f"{type(value).__name__}({_described(vars(value))})"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(_described(item) for item in value)})"
    if isinstance(value, dict):
        return str({key: _described(item) for key, item in value.items()})
    return repr(value)


def example_arguments(model: StepModule, part: Part, spec: GraphSpec) -> tuple[Any, ...]:
    """Arguments with the shapes and dtypes of a call of `part`; their memory is never touched."""
    shapes, dtypes = model.cache_shapes()[part.caches], model.cache_dtypes()[part.caches]
    caches = [torch.empty(shape, dtype=x) for shape, x in zip(shapes, dtypes, strict=True)]
    weights = [torch.empty_like(tensor, device="cpu") for tensor in tensors_of(part.owner).values()]
    return _leading(model, part, spec), _empty(part.inputs, spec, "cpu"), caches, weights


def _leading(model: StepModule, part: Part, spec: GraphSpec) -> list[Tensor]:
    """The activations that enter a part: none for a whole graph."""
    if not model.composes:
        return []
    inputs = {
        item.name: tensor
        for item, tensor in zip(spec.inputs, _empty(spec.inputs, spec, "meta"), strict=True)
    }
    x = model.embed(inputs)
    if isinstance(part.owner, _Ends):
        x = model.last_hidden(x, inputs)
    return [torch.empty_like(x, device="cpu")]


def _empty(inputs: Sequence[InputSpec], spec: GraphSpec, device: str) -> list[Tensor]:
    shapes = spec.input_shapes()
    return [
        torch.empty(shapes[item.name], dtype=getattr(torch, item.dtype), device=device)
        for item in inputs
    ]

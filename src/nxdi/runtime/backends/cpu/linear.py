"""Puts the linear kernels that suit a CPU into an exported graph, in place of torch's."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from nxdi.kernels.cpu.int4 import INT4_KERNEL
from nxdi.kernels.cpu.library import unsupported_reason
from nxdi.kernels.cpu.linear import MAX_WEIGHTS, load_linear_op
from nxdi.kernels.cpu.onednn import onednn_linear
from nxdi.kernels.registry import Choice

LINEAR_KERNEL = "nxdi_cpu::linear"
_WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
_CASTS = (torch.ops.aten.to.dtype, torch.ops.aten._to_copy.default)
# From this many rows on, arithmetic bounds a linear and oneDNN is faster (measured: 10 to 25 %).
_ONEDNN_MIN_ROWS = 256


@dataclass(frozen=True)
class _Call:
    """One linear of the graph: its activations, and its weight and bias behind any casts."""

    x: Node
    weight: Node
    bias: Node | None

    @property
    def num_rows(self) -> int:
        return int(self.x.meta["val"].shape[:-1].numel())


@dataclass(frozen=True)
class _Kernel:
    """A candidate: why it cannot serve a call (or None), and its operator (x, weight, bias)."""

    name: str
    declines: Callable[[_Call], str | None]
    operator: Callable[[], OpOverload]


def use_linear_kernels(graph: GraphModule, layers: Mapping[str, str]) -> set[Choice]:
    """Replace every linear by the first kernel that can compute it, casts of its weight included.

    The kernels widen 16-bit weights while they stream them, so that no float32 copy is made.
    Linears of the same activations become one call where the kernel takes several weights.
    layers: by the name of an input of the graph, the layer whose weight it is.
    Returns: what was chosen, and why the candidates before it were not.
    """
    choices = set()
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.linear.default:
            choices.add(_choose(graph, node, layers))
    for calls in list(_mergeable(graph)):
        _merge(graph, calls)
    graph.graph.lint()
    graph.recompile()
    return choices


def _choose(graph: GraphModule, node: Node, layers: Mapping[str, str]) -> Choice:
    call = _Call(_node(node.args[0]), _source(node.args[1]), _bias(node))
    dtype = str(call.weight.meta["val"].dtype).removeprefix("torch.")
    op, layer = f"{dtype} linear", layers.get(call.weight.name, "")
    refused: list[tuple[str, str]] = []
    for kernel in _KERNELS:
        reason = kernel.declines(call)
        if reason is None:
            _replace(graph, node, kernel, call)
            return Choice(op, kernel.name, tuple(refused), layer=layer)
        refused.append((kernel.name, reason))
    return Choice(op, "aten::linear", tuple(refused), is_reference=True, layer=layer)


def _onednn_declines(call: _Call) -> str | None:
    if call.num_rows < _ONEDNN_MIN_ROWS:
        return f"fewer than {_ONEDNN_MIN_ROWS} rows"
    tensors = [call.x, call.weight, *([call.bias] if call.bias is not None else [])]
    if any(tensor.meta["val"].dtype != torch.float32 for tensor in tensors):
        return "not all float32"
    return None if torch.backends.mkldnn.is_available() else "torch was built without oneDNN"


def _streaming_declines(call: _Call) -> str | None:
    x, weight = call.x.meta["val"], call.weight.meta["val"]
    if x.dtype != torch.float32:
        return f"activations are {x.dtype}, not float32"
    if weight.dtype not in _WEIGHT_DTYPES or weight.dim() != 2 or not weight.is_contiguous():
        return f"weight is {weight.dtype} with strides {weight.stride()}"
    return unsupported_reason()


_KERNELS = (
    _Kernel(
        "nxdi::onednn_linear",
        _onednn_declines,
        lambda: onednn_linear,
    ),
    _Kernel(
        LINEAR_KERNEL,
        _streaming_declines,
        load_linear_op,
    ),
)


def _node(value: object) -> Node:
    assert isinstance(value, Node)
    return value


def _source(value: object) -> Node:
    """The tensor behind casts."""
    node = _node(value)
    while node.target in _CASTS:
        node = _node(node.args[0])
    return node


def _bias(node: Node) -> Node | None:
    return _source(node.args[2]) if len(node.args) > 2 and node.args[2] is not None else None


def _replace(graph: GraphModule, node: Node, kernel: _Kernel, call: _Call) -> None:
    casts = node.args[1:]
    with graph.graph.inserting_before(node):
        new = graph.graph.call_function(kernel.operator(), (call.x, call.weight, call.bias))
    new.meta = node.meta
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)
    for cast in casts:
        if isinstance(cast, Node) and cast.target in _CASTS and not cast.users:
            graph.graph.erase_node(cast)


def _mergeable(graph: GraphModule) -> Iterator[list[Node]]:
    """Calls of a streaming kernel that one call can serve: they share their activations."""
    groups: dict[object, list[Node]] = {}
    num_writes = 0  # in place, so far: the same node may hold other values after one
    for node in graph.graph.nodes:
        if not isinstance(node.target, OpOverload):
            continue
        num_writes += node.target._schema.is_mutable
        if node.target._schema.name in (LINEAR_KERNEL, INT4_KERNEL):
            x, weight, *others = node.args  # a bias or a scale
            # Inputs of the graph are there before the first call; what is computed may not be.
            if all(tensor is None or tensor.op == "placeholder" for tensor in (weight, *others)):
                key = (node.target, x, weight.meta["val"].dtype, num_writes)
                groups.setdefault(key, []).append(node)
    for alike in groups.values():
        for first in range(0, len(alike), MAX_WEIGHTS):
            yield alike[first : first + MAX_WEIGHTS]


def _merge(graph: GraphModule, calls: Sequence[Node]) -> None:
    """Threads start once for all, and the weights are read as if they were one."""
    if len(calls) == 1:
        return
    kernel = calls[0].target
    assert isinstance(kernel, OpOverload)
    operands = [operand for call in calls for operand in call.args[1:]]
    sizes = [call.meta["val"].shape[-1] for call in calls]
    with graph.graph.inserting_before(calls[0]):
        merged = graph.graph.call_function(kernel, (calls[0].args[0], *operands))
        split = torch.ops.aten.split_with_sizes.default
        parts = graph.graph.call_function(split, (merged, sizes, -1))
        for index, call in enumerate(calls):
            call.replace_all_uses_with(graph.graph.call_function(operator.getitem, (parts, index)))
    for call in calls:
        graph.graph.erase_node(call)

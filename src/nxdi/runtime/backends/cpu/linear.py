"""Puts the weight-streaming linear kernel into an exported graph, in place of torch's."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from nxdi.kernels.cpu.linear import linear_unsupported_reason, load_linear_op
from nxdi.kernels.registry import Choice

LINEAR_KERNEL = "nxdi_cpu::linear"
_WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_CASTS = (torch.ops.aten.to.dtype, torch.ops.aten._to_copy.default)


def use_linear_kernel(graph: GraphModule) -> set[Choice]:
    """Replace every linear that the kernel can compute, casts of its weight included.

    The kernel widens 16-bit weights while it streams them, so that no float32 copy is made.
    """
    choices = set()
    unavailable = linear_unsupported_reason()
    for node in list(graph.graph.nodes):
        if node.target is not torch.ops.aten.linear.default:
            continue
        reason = unavailable or _declines(node)
        if reason is None:
            _replace(graph, node)
            choices.add(Choice("linear", LINEAR_KERNEL))
        else:
            choices.add(Choice("linear", "aten::linear", ((LINEAR_KERNEL, reason),)))
    graph.graph.lint()
    graph.recompile()
    return choices


def _declines(node: Node) -> str | None:
    """Why the kernel cannot compute this linear, or None."""
    x, weight = node.args[0].meta["val"], _source(node.args[1]).meta["val"]  # type: ignore[union-attr]  # tensors
    if x.dtype != torch.float32:
        return f"activations are {x.dtype}, not float32"
    if weight.dtype not in _WEIGHT_DTYPES or weight.dim() != 2:
        return f"weight is {weight.dtype} with {weight.dim()} dimensions"
    return None


def _source(node: object) -> Node:
    """The tensor behind casts."""
    assert isinstance(node, Node)
    while node.target in _CASTS:
        assert isinstance(node.args[0], Node)
        node = node.args[0]
    return node


def _replace(graph: GraphModule, node: Node) -> None:
    x, *parameters = node.args
    sources = [None if p is None else _source(p) for p in parameters]
    with graph.graph.inserting_before(node):
        new = graph.graph.call_function(load_linear_op(), (x, *sources))
    new.meta = node.meta
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)
    for cast in parameters:
        if isinstance(cast, Node) and cast.target in _CASTS and not cast.users:
            graph.graph.erase_node(cast)

"""What an exported graph does that Neuron is known to compute otherwise, or not to compile.

The rules are what users found on devices with the compilers that lower through torch_xla. Some are
silent there: plausible numbers, and wrong. A graph without findings is no proof of anything.
Source: the public notes of ports of vLLM to Neuron, SDK 2.31 and 2.32; docs/neuron.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_SIGNED = (torch.int32, torch.int64)
_CASTS = ("aten::to", "aten::_to_copy")
_VIEWS = ("aten::unsqueeze", "aten::expand", "aten::view", "aten::alias", "aten::slice")
# What may give 64-bit integers: indices, which other operations ask for, and views of them.
_INDICES = (*_CASTS, *_VIEWS, "aten::argmax", "aten::argmin", "aten::arange")


@dataclass(frozen=True)
class Divergence:
    """A node of a graph, the rule that it breaks, and what to write instead."""

    node: str
    rule: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.node}: {self.rule}; {self.remedy}"


def find_divergences(program: ExportedProgram) -> list[Divergence]:
    """Every node of a graph, as exported and not decomposed yet, that breaks a rule."""
    found = []
    for node in program.graph.nodes:
        found += [
            Divergence(node.name, rule, remedy)
            for rule, (breaks, remedy) in RULES.items()
            if node.op == "call_function" and breaks(node)
        ]
    return found


def _op(node: Node) -> str:
    target = node.target
    return target._schema.name if isinstance(target, torch._ops.OpOverload) else ""


def _arguments(node: Node) -> dict[str, Any]:
    """What an operation is given, by the names of its schema."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    names = [argument.name for argument in node.target._schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _tensor(value: Any) -> Tensor | None:
    found = value.meta.get("val") if isinstance(value, Node) else None
    return found if isinstance(found, Tensor) else None


def _dim(node: Node, rank: int) -> int:
    return int(_arguments(node).get("dim", 0)) % rank


def _splits_by_sizes(node: Node) -> bool:
    if _op(node) not in ("aten::split_with_sizes", "aten::split_with_sizes_copy"):
        return False
    x = _tensor(node.args[0])
    return x is not None and _dim(node, x.dim()) != 0


def _appends_short_suffix(node: Node) -> bool:
    x = _tensor(node)
    if _op(node) != "aten::cat" or x is None or x.dim() != 4 or _dim(node, 4) != 3:
        return False
    last = _tensor(_arguments(node)["tensors"][-1])
    return last is not None and 2 * last.shape[3] < x.shape[3]


def _goes_on_unsigned(node: Node) -> bool:
    x = _tensor(node)
    return (
        x is not None and x.dtype in _UNSIGNED and any(user.op != "output" for user in node.users)
    )


def _uses_topk_indices(node: Node) -> bool:
    """Whether the second result goes anywhere but into a cast."""
    indices = [user for user in node.users if user.args[1:] == (1,)]
    return _op(node) == "aten::topk" and not all(
        _op(user) in _CASTS and _arguments(user).get("dtype") in _SIGNED
        for taken in indices
        for user in taken.users
        if _op(user) != "aten::_assert_tensor_metadata"
    )


def _writes(node: Node) -> Iterator[tuple[Any, Tensor]]:
    """(what is written to, what is written) of an operation in place."""
    given = _arguments(node)
    source = _tensor(given.get("src", given.get("values")))
    if source is not None and _op(node) in ("aten::copy_", "aten::index_put_"):
        yield node.args[0], source


def _writes_strided(node: Node) -> bool:
    return any(not source.is_contiguous() for _, source in _writes(node))


def _casts_across_devices(node: Node) -> bool:
    given = _arguments(node)
    if _op(node) not in _CASTS or None in (given.get("device"), given.get("dtype")):
        return False
    x = _tensor(node.args[0])
    return x is not None and x.dtype != given["dtype"]


def _stores_partially(node: Node) -> bool:
    given, x = _arguments(node), _tensor(node)
    if _op(node) == "aten::slice_scatter":
        return bool(given.get("step", 1) != 1)
    if _op(node) in ("aten::index_put", "aten::index_put_") and x is not None:
        indices = given["indices"]
        return len(indices) == x.dim() > 1 and None in indices
    return any(
        isinstance(target, Node)
        and _op(target) == "aten::slice"
        and _arguments(target).get("step", 1) != 1
        for target, _ in _writes(node)
    )


def _makes_slice_contiguous(node: Node) -> bool:
    if _op(node) not in ("aten::contiguous", "aten::clone") or not isinstance(node.args[0], Node):
        return False
    sliced, x = node.args[0], _tensor(node.args[0])
    given = _arguments(sliced)
    is_inner = _op(sliced) == "aten::slice" and given.get("dim", 0) != 0
    return is_inner and bool(given.get("start")) and x is not None and not x.is_contiguous()


def _reads_a_value(node: Node) -> bool:
    found = node.meta.get("val")
    sizes = list(found.shape) if isinstance(found, Tensor) else [found]
    return any(isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)) for size in sizes)


def _fills_with_a_number(node: Node) -> bool:
    is_fill = _op(node) in ("aten::masked_fill", "aten::masked_fill_")
    return is_fill and isinstance(_arguments(node)["value"], float)


def _computes_in_64_bits(node: Node) -> bool:
    x = _tensor(node)
    is_known = _op(node) in _INDICES or not isinstance(node.target, torch._ops.OpOverload)
    return x is not None and x.dtype == torch.int64 and not is_known


# rule -> (whether a node breaks it, what to write instead)
RULES: dict[str, tuple[Callable[[Node], bool], str]] = {
    "a split by a list of sizes takes wrong elements, but along the first dimension": (
        _splits_by_sizes,
        "slice, chunk, or split by one size",
    ),
    "a short suffix joined to tensors of rank 4 becomes zeros": (
        _appends_short_suffix,
        "use torch.index_copy, or put it first",
    ),
    "an unsigned type is lost before the last operation": (
        _goes_on_unsigned,
        "compute in int32 and cast at the end",
    ),
    "the indices of topk are unsigned": (_uses_topk_indices, "cast them to int32 at once"),
    "a source that is not contiguous is refused in place": (
        _writes_strided,
        "make it contiguous first, or write out of place",
    ),
    "a cast to another device and dtype at once is refused": (
        _casts_across_devices,
        "cast, then move",
    ),
    "a store to some elements of the last dimension is not lowered": (
        _stores_partially,
        "index the leading dimensions and write whole rows",
    ),
    "an inner slice cannot be made contiguous": (
        _makes_slice_contiguous,
        "build the tensor without the part that is cut off",
    ),
    "the graph depends on a value": (_reads_a_value, "select with torch.where"),
    "a number that fills a mask becomes float64": (
        _fills_with_a_number,
        "fill with a tensor of no dimensions, x.new_full((), number)",
    ),
    "integers are computed in 64 bits": (
        _computes_in_64_bits,
        "give arange and sum dtype=torch.int32, and cast results of argmax",
    ),
}

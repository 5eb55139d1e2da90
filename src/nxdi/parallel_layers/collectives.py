"""Collectives as torch ops, so that every tracer sees them as single nodes with their groups.

Each op takes the full mesh of groups, flattened, and the group size: XLA wants every rank in some
group, and the CPU kernel picks the group of the rank that runs. Kernels here: Meta and CPU. At
group size 1 the `mappings` never call an op.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nxdi.parallel_layers import groups

LIBRARY = torch.library.Library("nxdi", "DEF")
LIBRARY.define("all_reduce(Tensor x, str op, int[] mesh, int group_size) -> Tensor")
LIBRARY.define("all_gather(Tensor x, int dim, int[] mesh, int group_size) -> Tensor")
LIBRARY.define("reduce_scatter(Tensor x, str op, int dim, int[] mesh, int group_size) -> Tensor")
LIBRARY.define(
    "all_to_all(Tensor x, int split_dim, int concat_dim, int[] mesh, int group_size) -> Tensor"
)

_REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
}


def _exchange(x: Tensor, mesh: list[int], group_size: int) -> tuple[list[Tensor], int]:
    """All tensors of the caller's group, and the caller's place in it."""
    world, rank = groups.current()
    place = mesh.index(rank)
    start = place - place % group_size
    ranks = mesh[start : start + group_size]
    return world.exchange(x, ranks), place - start


def _reduce(parts: list[Tensor], op: str) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total = _REDUCTIONS[op](total, part)
    return total


def _all_reduce(x: Tensor, op: str, mesh: list[int], group_size: int) -> Tensor:
    parts, _ = _exchange(x, mesh, group_size)
    return _reduce(parts, op)


def _all_gather(x: Tensor, dim: int, mesh: list[int], group_size: int) -> Tensor:
    parts, _ = _exchange(x, mesh, group_size)
    return torch.cat(parts, dim)


def _reduce_scatter(x: Tensor, op: str, dim: int, mesh: list[int], group_size: int) -> Tensor:
    parts, place = _exchange(x, mesh, group_size)
    return _reduce([part.chunk(group_size, dim)[place] for part in parts], op)


def _all_to_all(
    x: Tensor, split_dim: int, concat_dim: int, mesh: list[int], group_size: int
) -> Tensor:
    parts, place = _exchange(x, mesh, group_size)
    return torch.cat([part.chunk(group_size, split_dim)[place] for part in parts], concat_dim)


def _resized(x: Tensor, factors: dict[int, tuple[int, int]]) -> Tensor:
    """An empty tensor like `x` with each `dim` multiplied by num / den."""
    shape = list(x.shape)
    for dim, (num, den) in factors.items():
        shape[dim] = shape[dim] * num // den
    return x.new_empty(shape)


def _all_reduce_shape(x: Tensor, op: str, mesh: list[int], group_size: int) -> Tensor:
    return torch.empty_like(x)


def _all_gather_shape(x: Tensor, dim: int, mesh: list[int], group_size: int) -> Tensor:
    return _resized(x, {dim: (group_size, 1)})


def _reduce_scatter_shape(x: Tensor, op: str, dim: int, mesh: list[int], group_size: int) -> Tensor:
    return _resized(x, {dim: (1, group_size)})


def _all_to_all_shape(
    x: Tensor, split_dim: int, concat_dim: int, mesh: list[int], group_size: int
) -> Tensor:
    return _resized(_resized(x, {split_dim: (1, group_size)}), {concat_dim: (group_size, 1)})


for _name, _compute, _shape in (
    ("all_reduce", _all_reduce, _all_reduce_shape),
    ("all_gather", _all_gather, _all_gather_shape),
    ("reduce_scatter", _reduce_scatter, _reduce_scatter_shape),
    ("all_to_all", _all_to_all, _all_to_all_shape),
):
    LIBRARY.impl(_name, _compute, "CPU")
    torch.library.register_fake(f"nxdi::{_name}", _shape, lib=LIBRARY)

"""Collectives as torch ops, so that every tracer sees them as single nodes with their groups.

Each op takes the full mesh of groups, flattened, and the group size: XLA wants every rank in some group, and
the CPU kernel picks the group of the rank that runs. Kernels here: Meta and CPU. At group size 1 the
`mappings` never call an op.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nxdi.parallel_layers import groups

_LIBRARY = torch.library.Library("nxdi", "DEF")
_LIBRARY.define("all_reduce(Tensor x, str op, int[] mesh, int group_size) -> Tensor")
_LIBRARY.define("all_gather(Tensor x, int dim, int[] mesh, int group_size) -> Tensor")
_LIBRARY.define("reduce_scatter(Tensor x, str op, int dim, int[] mesh, int group_size) -> Tensor")
_LIBRARY.define("all_to_all(Tensor x, int split_dim, int concat_dim, int[] mesh, int group_size) -> Tensor")

_REDUCTIONS = {"sum": torch.add, "max": torch.maximum}


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


def _all_to_all(x: Tensor, split_dim: int, concat_dim: int, mesh: list[int], group_size: int) -> Tensor:
    parts, place = _exchange(x, mesh, group_size)
    return torch.cat([part.chunk(group_size, split_dim)[place] for part in parts], concat_dim)


def _resized(x: Tensor, factors: dict[int, tuple[int, int]]) -> Tensor:
    """An empty tensor like `x` with each `dim` multiplied by num / den."""
    shape = list(x.shape)
    for dim, (num, den) in factors.items():
        shape[dim] = shape[dim] * num // den
    return x.new_empty(shape)


_LIBRARY.impl("all_reduce", _all_reduce, "CPU")
_LIBRARY.impl("all_gather", _all_gather, "CPU")
_LIBRARY.impl("reduce_scatter", _reduce_scatter, "CPU")
_LIBRARY.impl("all_to_all", _all_to_all, "CPU")


@torch.library.register_fake("nxdi::all_reduce", lib=_LIBRARY)
def _(x: Tensor, op: str, mesh: list[int], group_size: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("nxdi::all_gather", lib=_LIBRARY)
def _(x: Tensor, dim: int, mesh: list[int], group_size: int) -> Tensor:
    return _resized(x, {dim: (group_size, 1)})


@torch.library.register_fake("nxdi::reduce_scatter", lib=_LIBRARY)
def _(x: Tensor, op: str, dim: int, mesh: list[int], group_size: int) -> Tensor:
    return _resized(x, {dim: (1, group_size)})


@torch.library.register_fake("nxdi::all_to_all", lib=_LIBRARY)
def _(x: Tensor, split_dim: int, concat_dim: int, mesh: list[int], group_size: int) -> Tensor:
    return _resized(_resized(x, {split_dim: (1, group_size)}), {concat_dim: (group_size, 1)})

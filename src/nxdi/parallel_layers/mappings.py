"""The few ways an activation moves between ranks.

Names follow neuronx_distributed; a group of one is free.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nxdi.parallel_layers import collectives as _collectives  # noqa: F401  registers ops
from nxdi.parallel_layers.parallel_state import ProcessGroup, get_tensor_model_parallel_group


def _group(process_group: ProcessGroup | None) -> ProcessGroup:
    return process_group or get_tensor_model_parallel_group()


def reduce_from_tensor_model_parallel_region(
    x: Tensor, process_group: ProcessGroup | None = None
) -> Tensor:
    """Sum over ranks."""
    group = _group(process_group)
    if group.size() == 1:
        return x
    y: Tensor = torch.ops.nxdi.all_reduce(x, "sum", group.flat_mesh, group.size())
    return y


def gather_from_tensor_model_parallel_region_with_dim(
    x: Tensor, gather_dim: int, process_group: ProcessGroup | None = None
) -> Tensor:
    """Concatenate every rank's `x` along `gather_dim`."""
    group = _group(process_group)
    if group.size() == 1:
        return x
    y: Tensor = torch.ops.nxdi.all_gather(x, gather_dim % x.dim(), group.flat_mesh, group.size())
    return y


def gather_from_sequence_parallel_region(
    x: Tensor, sequence_dimension: int = 1, process_group: ProcessGroup | None = None
) -> Tensor:
    """Whole sequences from their per-rank pieces."""
    return gather_from_tensor_model_parallel_region_with_dim(x, sequence_dimension, process_group)


def reduce_scatter_to_sequence_parallel_region(
    x: Tensor, sequence_dimension: int = 1, process_group: ProcessGroup | None = None
) -> Tensor:
    """Sum over ranks; each rank keeps its piece of the sequence."""
    group = _group(process_group)
    if group.size() == 1:
        return x
    dim = sequence_dimension % x.dim()
    y: Tensor = torch.ops.nxdi.reduce_scatter(x, "sum", dim, group.flat_mesh, group.size())
    return y


def scatter_to_sequence_parallel_region(
    x: Tensor, sequence_dimension: int = 1, process_group: ProcessGroup | None = None
) -> Tensor:
    """Each rank's piece of a sequence that all ranks hold whole.

    The maximum of equal copies, cut by a reduce-scatter: no index depends on the rank.
    """
    group = _group(process_group)
    if group.size() == 1:
        return x
    dim = sequence_dimension % x.dim()
    y: Tensor = torch.ops.nxdi.reduce_scatter(x, "max", dim, group.flat_mesh, group.size())
    return y


def all_to_all_in_tensor_model_parallel_region(
    x: Tensor, split_dim: int, concat_dim: int, process_group: ProcessGroup | None = None
) -> Tensor:
    """Piece r of `split_dim` goes to rank r; what arrives is concatenated along `concat_dim`."""
    group = _group(process_group)
    if group.size() == 1:
        return x
    dims = split_dim % x.dim(), concat_dim % x.dim()
    y: Tensor = torch.ops.nxdi.all_to_all(x, *dims, group.flat_mesh, group.size())
    return y


# NxD's private name for the gather, which models import.
_gather_along_dim = gather_from_tensor_model_parallel_region_with_dim

"""Tensor parallelism: worlds of ranks, collectives, sharding rules and the layers that use them."""

from nxdi.parallel_layers import layers, mappings, parallel_state, utils
from nxdi.parallel_layers.layers import ColumnParallelLinear, ParallelEmbedding, RowParallelLinear

__all__ = [
    "ColumnParallelLinear",
    "ParallelEmbedding",
    "RowParallelLinear",
    "layers",
    "mappings",
    "parallel_state",
    "utils",
]

"""Tensor parallelism: worlds of ranks, collectives, sharding rules and the layers that use them."""

from nxdi.parallel_layers import layers, mappings, parallel_state, utils
from nxdi.parallel_layers.layers import (
    BaseParallelLinear,
    ColumnParallelLinear,
    ParallelEmbedding,
    RowParallelLinear,
    SPMDRank,
)

__all__ = [
    "BaseParallelLinear",
    "ColumnParallelLinear",
    "ParallelEmbedding",
    "RowParallelLinear",
    "SPMDRank",
    "layers",
    "mappings",
    "parallel_state",
    "utils",
]

"""`nki.isa`: one function per instruction, a file per engine."""

from __future__ import annotations

from nxdi.errors import KernelError as NkiValidationError
from nxdi.kernels.sim.core import current
from nxdi.kernels.sim.enums import (
    dge_mode,
    dma_engine,
    engine,
    matmul_perf_mode,
    nc_version,
    oob_mode,
    reduce_cmd,
)
from nxdi.kernels.sim.isa.activations import activate2, activation, activation_reduce
from nxdi.kernels.sim.isa.copies import (
    memset,
    nc_stream_shuffle,
    tensor_copy,
    tensor_copy_predicated,
)
from nxdi.kernels.sim.isa.cores import core_barrier, sendrecv
from nxdi.kernels.sim.isa.dma import dma_compute, dma_copy, dma_transpose
from nxdi.kernels.sim.isa.gpsimd import (
    affine_select,
    iota,
    local_gather,
    nc_n_gather,
    nonzero_with_count,
    sequence_bounds,
    tensor_partition_reduce,
    topk,
)
from nxdi.kernels.sim.isa.matmul import nc_matmul, nc_transpose
from nxdi.kernels.sim.isa.mx import nc_matmul_mx, quantize_mx
from nxdi.kernels.sim.isa.random import (
    dropout,
    rand2,
    rand_get_state,
    rand_set_state,
    rng,
    set_rng_seed,
)
from nxdi.kernels.sim.isa.registers import (
    register_alloc,
    register_load,
    register_move,
    register_store,
)
from nxdi.kernels.sim.isa.search import max8, nc_find_index8, nc_match_replace8
from nxdi.kernels.sim.isa.select import exponential, range_select, select_reduce
from nxdi.kernels.sim.isa.vector import (
    bn_aggr,
    bn_stats,
    reciprocal,
    scalar_tensor_tensor,
    tensor_reduce,
    tensor_scalar,
    tensor_scalar_cumulative,
    tensor_scalar_reduce,
    tensor_tensor,
    tensor_tensor_scan,
)
from nxdi.kernels.sim.registers import VirtualRegister

tensor_engine = engine.tensor
vector_engine = engine.vector
scalar_engine = engine.scalar
gpsimd_engine = engine.gpsimd
unknown_engine = engine.unknown


def get_nc_version() -> nc_version:
    """The generation that the kernel runs on."""
    return nc_version(current().machine.generation)


__all__ = [
    "NkiValidationError",
    "VirtualRegister",
    "activate2",
    "activation",
    "activation_reduce",
    "affine_select",
    "bn_aggr",
    "bn_stats",
    "core_barrier",
    "dge_mode",
    "dma_compute",
    "dma_copy",
    "dma_engine",
    "dma_transpose",
    "dropout",
    "engine",
    "exponential",
    "get_nc_version",
    "gpsimd_engine",
    "iota",
    "local_gather",
    "matmul_perf_mode",
    "max8",
    "memset",
    "nc_find_index8",
    "nc_match_replace8",
    "nc_matmul",
    "nc_matmul_mx",
    "nc_n_gather",
    "nc_stream_shuffle",
    "nc_transpose",
    "nc_version",
    "nonzero_with_count",
    "oob_mode",
    "quantize_mx",
    "rand2",
    "rand_get_state",
    "rand_set_state",
    "range_select",
    "reciprocal",
    "reduce_cmd",
    "register_alloc",
    "register_load",
    "register_move",
    "register_store",
    "rng",
    "scalar_engine",
    "scalar_tensor_tensor",
    "select_reduce",
    "sendrecv",
    "sequence_bounds",
    "set_rng_seed",
    "tensor_copy",
    "tensor_copy_predicated",
    "tensor_engine",
    "tensor_partition_reduce",
    "tensor_reduce",
    "tensor_scalar",
    "tensor_scalar_cumulative",
    "tensor_scalar_reduce",
    "tensor_tensor",
    "tensor_tensor_scan",
    "topk",
    "unknown_engine",
    "vector_engine",
]

"""Every rule: a kernel that breaks it is told the rule and the line; corrected, it runs.

Each kernel is broken with `bad` and correct without; its marked line is the one at fault.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nxdi.kernels.sim
from nxdi.errors import KernelError
from nxdi.kernels import simulate
from nxdi.kernels.sim.rules import RULES
from sim_kernels import filled, nisa, nki, nl, stored

Broken = Callable[[bool], Any]
CASES: list[tuple[str, str, int, Broken]] = []


def breaks(rule: str, on: str = "gen3", cores: int = 1) -> Callable[[Broken], Broken]:
    def register(kernel: Broken) -> Broken:
        CASES.append((rule, on, cores, kernel))
        return kernel

    return register


def psum(*shape: int, dtype: Any = None) -> Any:
    return nl.ndarray(shape, dtype or nl.float32, buffer=nl.psum)


def hbm(*shape: int, dtype: Any = None) -> Any:
    return nl.zeros(shape, dtype or nl.float32, buffer=nl.hbm)


# Tensors


@breaks("partition-limit")
def partitions(bad: bool) -> None:
    nl.ndarray((129 if bad else 128, 4), nl.float32)  # <-


@breaks("tensor-rank")
def rank(bad: bool) -> None:
    nl.ndarray((128,) if bad else (128, 1), nl.float32)  # <-


@breaks("sbuf-tensor-size")
def sbuf_size(bad: bool) -> None:
    nl.ndarray((128, 60000 if bad else 50000), nl.float32)  # <-


@breaks("psum-tensor-size")
def psum_size(bad: bool) -> None:
    nl.ndarray((128, 4097 if bad else 4096), nl.float32, buffer=nl.psum)  # <-


@breaks("buffer-known")
def buffer(bad: bool) -> None:
    nl.ndarray((128, 4), nl.float32, buffer="sbuf" if bad else nl.sbuf)  # <-


@breaks("dtype-known")
def dtype(bad: bool) -> None:
    nl.ndarray((128, 4), "float64" if bad else "float32")  # <-


@breaks("address-alignment")
def alignment(bad: bool) -> None:
    nl.ndarray((128, 4), nl.float32, address=(0, 2 if bad else 4))  # <-


@breaks("address-range")
def address(bad: bool) -> None:
    nl.ndarray((128, 4), nl.float32, address=(32 if bad else 0, 0))  # <-


@breaks("manual-overlap")
def manual(bad: bool) -> None:
    one = nl.ndarray((128, 4), nl.float32, address=(0, 0))
    other = nl.ndarray((128, 4), nl.float32, address=(0, 8 if bad else 16))
    result = nl.ndarray((128, 4), nl.float32)
    nisa.memset(one, 1.0)
    nisa.memset(other, 2.0)
    nisa.tensor_copy(result, one)  # <-


@breaks("uninitialized-read")
def uninitialized(bad: bool) -> None:
    tile = nl.ndarray((128, 8), nl.float32)
    nisa.memset(tile[:, 0:7] if bad else tile, 1.0)
    nl.square(tile)  # <-


@breaks("index-range")
def index(bad: bool) -> None:
    tile = filled(128, 8)
    tile[:, 4 : 9 if bad else 8]  # <-


@breaks("reshape-size")
def reshape(bad: bool) -> None:
    tile = filled(64, 8)
    tile.reshape((32, 16) if bad else (64, 2, 4))  # <-


@breaks("broadcast-dimension")
def broadcast(bad: bool) -> None:
    tile = filled(64, 1, 8)
    tile.broadcast(2 if bad else 1, 4)  # <-


@breaks("pattern-rank")
def pattern(bad: bool) -> None:
    tile = filled(64, 8)
    tile.ap([[8, 64], *[[1, 1]] * (5 if bad else 4)])  # <-


@breaks("reinterpret-size")
def reinterpret(bad: bool) -> None:
    tile = filled(64, 7 if bad else 8, dtype=nl.uint8)
    tile.view(nl.float32)  # <-


@breaks("partition-start")
def start(bad: bool) -> None:
    tile = nl.ndarray((128, 4), nl.float32)
    first = 16 if bad else 32
    nisa.memset(tile[nl.ds(first, 32), :], 0.0)  # <-


@breaks("sbuf-capacity")
def capacity(bad: bool) -> None:
    one, other = filled(128, 30000), nl.ndarray((128, 30000), nl.float32)
    if not bad:
        nl.square(one[:, 0:1])
        nisa.memset(other, 1.0)
        return
    nisa.memset(other, 1.0)  # <-
    nisa.tensor_tensor(other, one, other, nl.add)


@breaks("psum-capacity")
def psum_capacity(bad: bool) -> None:
    tiles = [psum(128, 512) for _ in range(9 if bad else 8)]
    result = nl.ndarray((128, 512), nl.float32)
    for tile in tiles:
        nisa.memset(tile, 0.0)  # <-
    for tile in tiles:
        nisa.tensor_copy(result, tile)


@breaks("psum-open-groups")
def open_groups(bad: bool) -> None:
    one, other = filled(128, 128), filled(128, 512)
    tiles = [psum(128, 512) for _ in range(9 if bad else 8)]
    for tile in tiles:
        nisa.nc_matmul(tile, one, other)  # <-


@breaks("output-shared-hbm")
def output(bad: bool) -> Any:
    return hbm(4, 4) if bad else nl.zeros((4, 4), nl.float32, buffer=nl.shared_hbm)


@breaks("output-written")
def written(bad: bool) -> Any:
    out = nl.ndarray((4, 4), nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(out[0 : 3 if bad else 4, :], filled(3 if bad else 4, 4))
    return out


# Any instruction


@breaks("same-shape")
def shapes(bad: bool) -> None:
    one, other = filled(128, 8), filled(128, 4 if bad else 8)
    nl.add(one, other)  # <-


@breaks("same-dtype")
def dtypes(bad: bool) -> None:
    one, other = filled(32, 32), psum(32, 32, dtype=nl.bfloat16 if bad else nl.float32)
    nisa.nc_transpose(other, one)  # <-


@breaks("on-chip")
def on_chip(bad: bool) -> None:
    memory = hbm(128, 4)
    tile = memory if bad else nl.load(memory)
    nl.square(tile)  # <-


@breaks("vector-operand")
def operand(bad: bool) -> None:
    tile, column = filled(128, 4), filled(128, 2 if bad else 1)
    nl.multiply(tile, 2.0)
    nisa.tensor_scalar(tile, tile, nl.multiply, column)  # <-


@breaks("psum-both")
def both(bad: bool) -> None:
    one = filled(128, 4, buffer=nl.psum)
    other = filled(128, 4, buffer=nl.psum if bad else nl.sbuf)
    nl.add(one, other)  # <-


@breaks("gpsimd-psum")
def gpsimd(bad: bool) -> None:
    tile = filled(128, 4, buffer=nl.psum)
    result = nl.ndarray((128, 4), nl.float32)
    engine = nisa.engine.gpsimd if bad else nisa.engine.vector
    nisa.tensor_copy(result, tile, engine=engine)  # <-


@breaks("engine-known", on="gen2")
def engine_known(bad: bool) -> None:
    tile, engine = filled(128, 4), nisa.engine.scalar if bad else nisa.engine.vector
    nisa.tensor_copy(tile, tile, engine=engine)  # <-


@breaks("op-known")
def op_known(bad: bool) -> None:
    tile = filled(128, 4)
    nisa.activation(tile, nl.add if bad else nl.exp, tile)  # <-


@breaks("op-class")
def op_class(bad: bool) -> None:
    tile = filled(128, 4, dtype=nl.int32)
    second = nl.add if bad else nl.bitwise_or
    nisa.tensor_scalar(tile, tile, nl.bitwise_and, 3, op1=second, operand1=1)  # <-


@breaks("op-class")
def op_bits(bad: bool) -> None:
    tile = filled(128, 4, dtype=nl.float32 if bad else nl.int32)
    nisa.tensor_scalar(tile, tile, nl.bitwise_and, 3)  # <-


@breaks("accumulator-state")
def accumulator(bad: bool) -> None:
    tile, total = filled(128, 4), nl.ndarray((128, 1), nl.float32)
    cmd = nisa.reduce_cmd.reduce if bad else nisa.reduce_cmd.reset_reduce
    nisa.activation(tile, nl.exp, tile, reduce_op=nl.add, reduce_res=total, reduce_cmd=cmd)  # <-


@breaks("accumulator-state")
def clobbered(bad: bool) -> None:
    tile, total, bits = (
        filled(128, 4),
        nl.ndarray((128, 1), nl.float32),
        filled(128, 4, dtype="int8"),
    )
    first, then = nisa.reduce_cmd.reset_reduce, nisa.reduce_cmd.reduce
    nisa.tensor_scalar_reduce(tile, tile, nl.add, 1.0, nl.maximum, total, reduce_cmd=first)
    if bad:
        nisa.select_reduce(tile, bits, tile, 0.0)
    nisa.tensor_scalar_reduce(tile, tile, nl.add, 1.0, nl.maximum, total, reduce_cmd=then)  # <-


# Data movement


@breaks("dma-psum")
def dma_psum(bad: bool) -> None:
    tile = filled(128, 4, buffer=nl.psum if bad else nl.sbuf)
    nl.store(hbm(128, 4), tile)  # <-


@breaks("dma-elements")
def dma_elements(bad: bool) -> None:
    nisa.dma_copy(hbm(128, 4), filled(128, 3 if bad else 4))  # <-


@breaks("hwdge-dtype")
def hwdge_dtype(bad: bool) -> None:
    mode = nisa.dge_mode.hwdge if bad else nisa.dge_mode.swdge
    nisa.dma_copy(hbm(128, 4), filled(128, 4, dtype=nl.bfloat16), dge_mode=mode)  # <-


@breaks("generation", on="gen2")
def hwdge_generation(bad: bool) -> None:
    mode = nisa.dge_mode.hwdge if bad else nisa.dge_mode.none
    nisa.dma_copy(hbm(128, 4), filled(128, 4), dge_mode=mode)  # <-


@breaks("oob-skip")
def oob_skip(bad: bool) -> None:
    mode = nisa.oob_mode.skip if bad else nisa.oob_mode.error
    nisa.dma_copy(hbm(128, 4), filled(128, 4), oob_mode=mode)  # <-


def gathered(rows: Any, index: Any, on: Any = None) -> Any:
    width = rows.shape[1]
    return rows.ap([[width, index.shape[0]], [1, width]], vector_offset=index)


def ramp(dtype: Any, step: int = 1, offset: int = 0) -> Any:
    index = nl.ndarray((32, 1), dtype)
    nisa.iota(index, [[1, 1]], offset=offset, channel_multiplier=step)
    return index


@breaks("indirect-dge")
def indirect_dge(bad: bool) -> None:
    tile, source = nl.ndarray((32, 4), nl.float32), gathered(hbm(64, 4), ramp(nl.int32))
    mode = nisa.dge_mode.hwdge if bad else nisa.dge_mode.swdge
    nisa.dma_copy(tile, source, dge_mode=mode)  # <-


@breaks("indirect-index")
def indirect_index(bad: bool) -> None:
    tile, index = nl.ndarray((32, 4), nl.float32), ramp(nl.float32 if bad else nl.uint32)
    nisa.dma_copy(tile, gathered(hbm(64, 4), index))  # <-


@breaks("indirect-side")
def indirect_side(bad: bool) -> None:
    tile = filled(64, 4) if bad else hbm(64, 4)
    nisa.dma_copy(hbm(32, 4), gathered(tile, ramp(nl.int32)))  # <-


@breaks("indirect-range")
def indirect_range(bad: bool) -> None:
    tile, index = nl.ndarray((32, 4), nl.float32), ramp(nl.int32, offset=33 if bad else 32)
    nisa.dma_copy(tile, gathered(hbm(64, 4), index))  # <-


@breaks("scatter-unique")
def scatter(bad: bool) -> None:
    target = gathered(hbm(64, 4), ramp(nl.int32, step=0 if bad else 2))
    nisa.dma_copy(target, filled(32, 4))  # <-


@breaks("dma-transpose-dtype")
def transpose_dtype(bad: bool) -> None:
    kind = nl.float32 if bad else nl.bfloat16
    nisa.dma_transpose(nl.ndarray((64, 32), kind), filled(32, 64, dtype=kind))  # <-


@breaks("dma-transpose-shape")
def transpose_shape(bad: bool) -> None:
    turned = nl.ndarray((32, 64) if bad else (64, 32), nl.bfloat16)
    nisa.dma_transpose(turned, filled(32, 64, dtype=nl.bfloat16))  # <-


@breaks("dma-accumulate")
def dma_accumulate(bad: bool) -> None:
    nisa.dma_compute(hbm(128, 4), [filled(128, 4)] * (17 if bad else 16), nl.add)  # <-


@breaks("memset-value")
def memset_value(bad: bool) -> None:
    nisa.memset(nl.ndarray((128, 4), nl.int32), 0.5 if bad else 2)  # <-


@breaks("predicate-dtype")
def predicate(bad: bool) -> None:
    tile, mask = filled(128, 4), filled(128, 4, dtype=nl.float32 if bad else nl.uint8)
    nisa.tensor_copy_predicated(tile, tile, mask)  # <-


@breaks("shuffle-mask")
def shuffle(bad: bool) -> None:
    tile = filled(32, 4)
    nisa.nc_stream_shuffle(tile, tile, [0] * 31 + [32 if bad else 31])  # <-


@breaks("register-scalar")
def register(bad: bool) -> None:
    tile = filled(1, 2 if bad else 1, dtype=nl.int32)
    nisa.register_load(nisa.register_alloc(), tile)  # <-


# Tensor engine


@breaks("matmul-buffers")
def matmul_buffers(bad: bool) -> None:
    one, other, result = filled(128, 128), filled(128, 64), psum(128, 64)
    if bad:
        result = nl.ndarray((128, 64), nl.float32)
    nisa.nc_matmul(result, one, other)  # <-


@breaks("matmul-contraction")
def matmul_contraction(bad: bool) -> None:
    one, other, result = filled(64 if bad else 128, 128), filled(128, 64), psum(128, 64)
    nisa.nc_matmul(result, one, other)  # <-


@breaks("matmul-stationary")
def matmul_stationary(bad: bool) -> None:
    one, other, result = filled(128, 129 if bad else 128), filled(128, 64), psum(128, 64)
    nisa.nc_matmul(result, one, other)  # <-


@breaks("matmul-moving")
def matmul_moving(bad: bool) -> None:
    width = 513 if bad else 512
    one, other, result = filled(128, 128), filled(128, width), psum(128, width)
    nisa.nc_matmul(result, one, other)  # <-


@breaks("matmul-dst-dtype")
def matmul_dst_dtype(bad: bool) -> None:
    one, other = filled(128, 128, dtype=nl.bfloat16), filled(128, 64, dtype=nl.bfloat16)
    result = psum(128, 64, dtype=nl.bfloat16 if bad else nl.float32)
    nisa.nc_matmul(result, one, other)  # <-


@breaks("matmul-dst-shape")
def matmul_dst_shape(bad: bool) -> None:
    one, other, result = filled(128, 128), filled(128, 64), psum(128, 32 if bad else 64)
    nisa.nc_matmul(result, one, other)  # <-


@breaks("matmul-dtypes")
def matmul_dtypes(bad: bool) -> None:
    one, other = (
        filled(128, 128, dtype=nl.float32 if bad else nl.float16),
        filled(128, 64, dtype="bfloat16"),
    )
    nisa.nc_matmul(psum(128, 64), one, other)  # <-


@breaks("matmul-dtypes", on="gen4")
def matmul_float8(bad: bool) -> None:
    one, other = filled(128, 128, dtype=nl.float8_e4m3fn), filled(128, 64, dtype=nl.float8_e4m3)
    nisa.nc_matmul(psum(128, 64), one, other if bad else nl.copy(other, dtype="bfloat16"))  # <-


@breaks("matmul-bank")
def matmul_bank(bad: bool) -> None:
    one, other, result = filled(128, 128), filled(128, 256), psum(128, 1024)
    first = 384 if bad else 512
    nisa.nc_matmul(result[:, nl.ds(first, 256)], one, other)  # <-


@breaks("accumulate-unwritten")
def accumulate(bad: bool) -> None:
    one, other, result = filled(128, 128), filled(128, 64), psum(128, 64)
    nisa.nc_matmul(result, one, other, accumulate=bad)  # <-


@breaks("accumulate-unwritten")
def accumulate_memset(bad: bool) -> None:
    one, other, result = filled(128, 128), filled(128, 64), filled(128, 64, buffer=nl.psum)
    if not bad:
        nisa.nc_matmul(result, one, other, accumulate=False)
    nisa.nc_matmul(result, one, other, accumulate=True)  # <-


@breaks("pe-tile-size", on="gen2")
def tile_size(bad: bool) -> None:
    rows = 32 if bad else 64
    one, other, result = filled(32, 32), filled(32, 64), psum(32, 64)
    nisa.nc_matmul(result, one, other, tile_position=(0, 0), tile_size=(rows, rows))  # <-


@breaks("pe-tile-position")
def tile_position(bad: bool) -> None:
    first = 16 if bad else 32
    one, other, result = filled(32, 32), filled(32, 64), psum(32, 64)
    nisa.nc_matmul(result, one, other, tile_position=(first, 0), tile_size=(32, 32))  # <-


@breaks("double-row")
def double_row(bad: bool) -> None:
    kind = nl.bfloat16 if bad else nl.float8_e4m3
    one, other, result = (
        filled(128, 2, 64, dtype=kind),
        filled(128, 2, 64, dtype=kind),
        psum(64, 64),
    )
    nisa.nc_matmul(result, one, other, perf_mode=nisa.matmul_perf_mode.double_row)  # <-


@breaks("generation", on="gen2")
def double_row_generation(bad: bool) -> None:
    one, result = filled(128, 2, 64, dtype=nl.float8_e4m3), psum(64, 64)
    mode = nisa.matmul_perf_mode.double_row if bad else nisa.matmul_perf_mode.none
    left = one if bad else one[:, 0, :]
    nisa.nc_matmul(result, left, left, perf_mode=mode)  # <-


@breaks("mx-operands", on="gen4")
def mx_operands(bad: bool) -> None:
    packed = nl.ndarray((32, 16), nl.float8_e4m3fn_x4)
    scale = nl.ndarray((4, 16), nl.uint16 if bad else nl.uint8)
    nisa.quantize_mx(packed, filled(32, 64, dtype=nl.bfloat16), scale)  # <-


@breaks("memset-value")
def memset_packed(bad: bool) -> None:
    nisa.memset(nl.ndarray((32, 4), nl.float8_e5m2_x4), 1 if bad else 0)  # <-


@breaks("transpose-size")
def transpose_size(bad: bool) -> None:
    tile = filled(64 if bad else 32, 32)
    turned = nl.ndarray((32, tile.shape[0]), nl.float32)
    nisa.nc_transpose(turned, tile, engine=nisa.engine.vector)  # <-


# Vector, scalar and gpsimd engines


@breaks("activation-bias", on="gen2")
def bias(bad: bool) -> None:
    tile, column = filled(128, 4), filled(128, 1)
    nisa.activation(tile, nl.exp, tile, bias=1.0 if bad else column)  # <-


@breaks("activation-scale")
def scale(bad: bool) -> None:
    tile, column = filled(128, 4), filled(128, 1, dtype=nl.bfloat16 if bad else nl.float32)
    nisa.activation(tile, nl.exp, tile, scale=column)  # <-


@breaks("activation-range")
def activation_range(bad: bool) -> None:
    tile = filled(128, 4, value=4.0 if bad else 3.0)
    nisa.activation(tile, nl.sin, tile)  # <-


@breaks("activation-reduce")
def activation_reduce(bad: bool) -> None:
    tile, total = filled(128, 4), nl.ndarray((128, 1), nl.float32)
    nisa.activation_reduce(tile, nl.exp, tile, nl.maximum if bad else nl.add, total)  # <-


@breaks("scalar-engine-op")
def scalar_op(bad: bool) -> None:
    tile, op = filled(128, 4), nl.maximum if bad else nl.multiply
    nisa.tensor_scalar(tile, tile, op, 2.0, engine=nisa.engine.scalar)  # <-


@breaks("reduce-axes")
def reduce_axes(bad: bool) -> None:
    tile = filled(128, 4, 8)
    result = nl.ndarray((128, 8 if bad else 4), nl.float32)
    nisa.tensor_reduce(result, nl.add, tile, 1 if bad else 2)  # <-


@breaks("max8-size")
def max8_size(bad: bool) -> None:
    nisa.max8(nl.ndarray((128, 8), nl.float32), filled(128, 7 if bad else 8))  # <-


@breaks("gather-index")
def find_dtype(bad: bool) -> None:
    tile, found = filled(128, 8), nl.ndarray((128, 8), nl.int32 if bad else nl.uint32)
    nisa.nc_find_index8(found, tile, tile)  # <-


@breaks("affine-pattern")
def affine(bad: bool) -> None:
    nisa.iota(nl.ndarray((128, 8), nl.int32), [[1, 7 if bad else 8]])  # <-


@breaks("bn-stats-size")
def bn_stats(bad: bool) -> None:
    nisa.bn_stats(nl.ndarray((128, 6), nl.float32), filled(128, 513 if bad else 512))  # <-


@breaks("fp32-bounds")
def bounds(bad: bool) -> None:
    tile, low, first = filled(128, 8), filled(128, 1), (1 << 24) - (7 if bad else 8)
    nisa.range_select(tile, tile, nl.greater, nl.less, low, low, range_start=first)  # <-


@breaks("generation", on="gen2")
def range_generation(bad: bool) -> None:
    tile, low = filled(128, 8), filled(128, 1)
    if bad:
        nisa.range_select(tile, tile, nl.greater, nl.less, low, low)  # <-


@breaks("generation", on="gen3")
def exponential_generation(bad: bool) -> None:
    tile = filled(128, 8)
    nisa.exponential(tile, tile) if bad else nisa.activation(tile, nl.exp, tile)  # <-


@breaks("topk-size")
def topk_size(bad: bool) -> None:
    tile = filled(16, 2, dtype=nl.bfloat16)
    values = nl.ndarray((16, 20), nl.bfloat16)
    nisa.topk(values, nl.ndarray((16, 20), nl.uint32), tile, 19 if bad else 20)  # <-


@breaks("gather-index")
def topk_dtype(bad: bool) -> None:
    tile, values = filled(16, 2, dtype=nl.bfloat16), nl.ndarray((16, 8), nl.bfloat16)
    nisa.topk(values, nl.ndarray((16, 8), nl.int32 if bad else nl.uint32), tile, 32)  # <-


@breaks("activation-operators", on="gen4")
def activation_operators(bad: bool) -> None:
    tile = filled(128, 8)
    nisa.activate2(tile, nl.exp, tile, 1.0, 1.0, nl.add, nl.multiply if bad else nl.bypass)  # <-


@breaks("generation", on="gen3")
def activate2_generation(bad: bool) -> None:
    tile = filled(128, 8)
    if bad:
        nisa.activate2(tile, nl.exp, tile, 1.0, 1.0, nl.multiply, nl.add)  # <-


@breaks("generation", on="gen3")
def rand2_generation(bad: bool) -> None:
    tile = filled(128, 8)
    nisa.rand2(tile, 0.0, 1.0) if bad else nisa.dropout(tile, tile, 0.5)  # <-


@breaks("random-dtype")
def random_dtype(bad: bool) -> None:
    nisa.rng(nl.ndarray((128, 8), nl.float32 if bad else nl.uint32))  # <-


@breaks("random-state")
def random_state(bad: bool) -> None:
    nisa.rand_set_state(filled(128, 5 if bad else 6, dtype=nl.uint32))  # <-


@breaks("random-state")
def random_seed(bad: bool) -> None:
    nisa.set_rng_seed(filled(1, 2 if bad else 1, dtype=nl.int32))  # <-


# Two cores


def both_halves() -> tuple[Any, Any]:
    shared = nl.ndarray((64, 4), nl.float32, buffer=nl.shared_hbm, name="halves")
    nisa.dma_copy(shared[nl.ds(32 * nl.program_id(0), 32), :], filled(32, 4))
    return shared, nl.ndarray((64, 4), nl.float32)


@breaks("core-race", cores=2)
def race(bad: bool) -> None:
    shared, tile = both_halves()
    if not bad:
        nisa.core_barrier(shared, (0, 1))
    mine = nl.ds(32 * nl.program_id(0), 32) if bad and nl.program_id(0) == 0 else nl.ds(0, 64)
    nisa.dma_copy(tile[mine, :], shared[mine, :])  # <-


@breaks("core-deadlock", cores=2)
def deadlock(bad: bool) -> None:
    shared, _ = both_halves()
    if not bad or nl.program_id(0) == 0:
        nisa.core_barrier(shared, (0, 1))  # <-


@breaks("core-deadlock", cores=2)
def different_pipes(bad: bool) -> None:
    tile, me = filled(32, 4), nl.program_id(0)
    nisa.sendrecv(tile, tile, 1 - me, 1 - me, me if bad else 0)  # <-


@breaks("core-pair", cores=2)
def ranks(bad: bool) -> None:
    tile, me = filled(32, 4), nl.program_id(0)
    nisa.sendrecv(tile, tile, 2 if bad else 1 - me, 1 - me, 0)  # <-


@breaks("sendrecv-size", cores=2)
def send_size(bad: bool) -> None:
    tile, other = filled(32, 257 if bad else 256), 1 - nl.program_id(0)
    nisa.sendrecv(tile, tile, other, other, 0, dma_engine=nisa.dma_engine.gpsimd_dma)  # <-


@breaks("shared-tensor", cores=2)
def shared_tensor(bad: bool) -> None:
    rows = 8 + (nl.program_id(0) if bad else 0)
    nl.ndarray((rows, 4), nl.float32, buffer=nl.shared_hbm)  # <-


def marked_line(kernel: Broken) -> int | None:
    lines, first = inspect.getsourcelines(kernel)
    marked = [at for at, line in enumerate(lines, start=first) if line.rstrip().endswith("# <-")]
    return marked[0] if marked else None


IDS = [f"{case[0]}-{case[3].__name__}" for case in CASES]


@pytest.mark.parametrize(("rule", "on", "cores", "kernel"), CASES, ids=IDS)
def test_a_broken_rule_is_named_with_its_line(
    rule: str, on: str, cores: int, kernel: Broken
) -> None:
    with pytest.raises(KernelError) as caught:
        simulate(nki.jit(kernel)[cores], target=on)(True)
    assert caught.value.rule == rule
    line = marked_line(kernel)
    if line is not None:
        assert caught.value.line == f"{__file__}:{line}"


@pytest.mark.parametrize(("rule", "on", "cores", "kernel"), CASES, ids=IDS)
def test_the_corrected_kernel_passes(rule: str, on: str, cores: int, kernel: Broken) -> None:
    simulate(nki.jit(kernel)[cores], target=on)(False)


def test_every_rule_has_a_kernel_and_a_check() -> None:
    assert {case[0] for case in CASES} == RULES.keys()
    folder = Path(nxdi.kernels.sim.__file__).parent
    source = "".join(path.read_text() for path in folder.rglob("*.py") if path.name != "rules.py")
    assert [rule for rule in RULES if f'"{rule}"' not in source] == []


def test_a_message_names_the_value_the_limit_and_the_remedy() -> None:
    with pytest.raises(KernelError, match=r"129 partitions .* more than 128; tile"):
        simulate(partitions)(True)


def test_checks_hold_without_computing() -> None:
    with pytest.raises(KernelError) as caught:
        simulate(uninitialized, numerics="shapes")(True)
    assert caught.value.rule == "uninitialized-read"


def test_a_kernel_that_is_right_computes() -> None:
    def kernel(x: Any) -> Any:
        return stored(nl.add(nl.load(x), 1.0))

    assert np.array_equal(simulate(kernel)(np.zeros((4, 4), np.float32)), np.ones((4, 4)))

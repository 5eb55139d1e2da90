"""GpSimd: affine patterns, gathers, and reductions across partitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nxdi.kernels.sim import cost
from nxdi.kernels.sim.core import current
from nxdi.kernels.sim.dtypes import Array
from nxdi.kernels.sim.enums import engine as Engine
from nxdi.kernels.sim.isa.common import in_sbuf, on_chip, same_dtype, same_shape, since
from nxdi.kernels.sim.ops import OPS, REDUCTIONS, as_op
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor
from nxdi.kernels.sim.validity import mark_written
from nxdi.kernels.sim.values import raw_rows, rows, write, write_raw


def _affine(
    dst: NkiTensor, pattern: Sequence[Sequence[int]], offset: int, channel_multiplier: int
) -> Array:
    """Int32 values [P, N] of an affine pattern."""
    values = np.zeros((1,), np.int64)
    for step, number in pattern:
        values = (values[:, None] + np.arange(number, dtype=np.int64) * step).reshape(-1)
    channels = np.arange(dst.shape[0], dtype=np.int64)[:, None] * channel_multiplier
    wrapped: Array = (values[None, :] + channels + offset).astype(np.int32)
    return wrapped


def _check_pattern(dst: NkiTensor, pattern: Sequence[Sequence[int]]) -> None:
    number = int(np.prod([item[1] for item in pattern], dtype=np.int64))
    require(
        len(pattern) <= 4 and number == dst.free_size,
        "affine-pattern",
        f"pattern {pattern} has {len(pattern)} dimensions and {number} elements; {dst} needs "
        f"{dst.free_size}, in at most 4",
    )


def iota(
    dst: NkiTensor,
    pattern: Sequence[Sequence[int]],
    offset: int = 0,
    channel_multiplier: int = 0,
    name: str | None = None,
) -> None:
    """`dst[p, i] = offset + p * channel_multiplier + pattern[i]`."""
    core = current()
    in_sbuf("gpsimd-psum", dst)
    _check_pattern(dst, pattern)
    work = cost.elementwise(core.machine, Engine.gpsimd, [dst])
    if core.issue("iota", Engine.gpsimd, [], [dst], work):
        write(dst, _affine(dst, pattern, offset, channel_multiplier))


def affine_select(
    dst: NkiTensor,
    pattern: Sequence[Sequence[int]],
    channel_multiplier: int,
    on_true_tile: NkiTensor,
    on_false_value: float,
    cmp_op: Any = OPS["equal"],
    offset: int = 0,
    name: str | None = None,
) -> None:
    """`dst` = the tile where the affine value compares with 0, else `on_false_value`."""
    core = current()
    same_shape(dst, on_true_tile)
    in_sbuf("gpsimd-psum", dst, on_true_tile)
    _check_pattern(dst, pattern)
    compare = as_op(cmp_op, "arithmetic")
    work = cost.elementwise(core.machine, Engine.gpsimd, [dst, on_true_tile])
    if core.issue("affine_select", Engine.gpsimd, [on_true_tile], [dst], work):
        affine = _affine(dst, pattern, offset, channel_multiplier)
        chosen = compare.compute(affine, np.int32(0)) != 0
        write(dst, np.where(chosen, rows(on_true_tile), np.float32(on_false_value)))


def local_gather(
    dst: NkiTensor,
    src_buffer: NkiTensor,
    index: NkiTensor,
    num_elem_per_idx: int = 1,
    num_valid_indices: int | None = None,
    name: str | None = None,
) -> None:
    """Each 16 partitions gather with the indices that they hold together, column by column."""
    core = current()
    on_chip(dst, src_buffer, index)
    in_sbuf("gpsimd-psum", dst, src_buffer, index)
    same_dtype(dst, src_buffer)
    number = index.free_size * 16 if num_valid_indices is None else num_valid_indices
    require(
        index.dtype.name == "uint16"
        and src_buffer.shape[0] == index.shape[0]
        and index.shape[0] % 16 == 0
        and num_elem_per_idx in (1, 2, 4, 8, 16, 32)
        and number <= min(4096, index.free_size * 16),
        "gather-index",
        f"index {index} must be uint16 with {src_buffer.shape[0]} partitions, a multiple of 16, "
        "and at most 4096 indices per 16 partitions",
    )
    size = number * num_elem_per_idx
    cycles = core.machine.gpsimd_start_cycles + size
    work = cost.cycles(core.machine, Engine.gpsimd, cycles)
    require(dst.free_size == size, "same-shape", f"{dst} needs {size} elements per partition")
    if core.issue("local_gather", Engine.gpsimd, [src_buffer, index], [dst], work):
        values, places = raw_rows(src_buffer), raw_rows(index).astype(np.int64)
        result = np.empty((dst.shape[0], size), values.dtype)
        for first in range(0, index.shape[0], 16):
            flat = places[first : first + 16].T.reshape(-1)[:number]
            wide = (flat[:, None] + np.arange(num_elem_per_idx)).reshape(-1)
            result[first : first + 16] = values[first : first + 16][:, wide]
        write_raw(dst, result)


def nc_n_gather(
    dst: NkiTensor, data: NkiTensor, indices: NkiTensor, name: str | None = None
) -> None:
    """`dst[p, i] = data[p, indices[p, i]]`."""
    core = current()
    same_shape(dst, indices)
    same_dtype(dst, data)
    in_sbuf("gpsimd-psum", dst, data, indices)
    require(
        indices.dtype.name == "uint32" and data.shape[0] == indices.shape[0],
        "gather-index",
        f"indices {indices} must be uint32 with {data.shape[0]} partitions",
    )
    groups = -(-indices.free_size // 512)
    cycles = groups * core.machine.gpsimd_start_cycles + indices.free_size
    work = cost.cycles(core.machine, Engine.gpsimd, cycles)
    if core.issue("nc_n_gather", Engine.gpsimd, [data, indices], [dst], work):
        places = raw_rows(indices).astype(np.int64)
        outside = int(np.count_nonzero(places >= data.free_size))
        require(outside == 0, "indirect-range", f"{outside} indices lie outside {data}")
        write_raw(dst, np.take_along_axis(raw_rows(data), places, axis=1))


def tensor_partition_reduce(
    dst: NkiTensor, op: Any, data: NkiTensor, name: str | None = None
) -> None:
    """`dst[0, :]` = reduction of `data` over its partitions."""
    core = current()
    in_sbuf("gpsimd-psum", dst, data)
    total = as_op(op, *REDUCTIONS)
    require(
        (dst.shape[0], dst.free_size) == (1, data.free_size),
        "same-shape",
        f"{dst} must have shape [1, {data.free_size}]",
    )
    work = cost.elementwise(core.machine, Engine.gpsimd, [data])
    if core.issue("tensor_partition_reduce", Engine.gpsimd, [data], [dst], work):
        is_bits = total.kind == "bitwise"
        values = raw_rows(data) if is_bits else rows(data)
        write(dst, REDUCTIONS[total.name](values, axis=0))


def nonzero_with_count(
    dst: NkiTensor,
    src: NkiTensor,
    index_offset: int = 0,
    padding_val: int = -1,
    name: str | None = None,
) -> None:
    """In partitions 0, 16, ..: the places of nonzero elements, padding, and their number."""
    core = current()
    since(3, "nonzero_with_count")
    in_sbuf("gpsimd-psum", dst, src)
    require(
        (dst.shape[0], dst.free_size) == (src.shape[0], src.free_size + 1)
        and dst.dtype.name in ("int32", "uint32"),
        "same-shape",
        f"{dst} must be int32 [{src.shape[0]}, {src.free_size + 1}]",
    )
    work = cost.elementwise(core.machine, Engine.gpsimd, [dst, src])
    computes = core.issue("nonzero_with_count", Engine.gpsimd, [src], [dst], work, marks=False)
    for at in range(0, src.shape[0], 16):
        result = dst[at : at + 1]
        mark_written(result)
        if computes:
            places = np.flatnonzero(raw_rows(src)[at]) + index_offset
            row = np.full((1, dst.free_size), padding_val, np.int64)
            row[0, : places.size], row[0, -1] = places, places.size
            write(result, row)


def sequence_bounds(dst: NkiTensor, segment_ids: NkiTensor, name: str | None = None) -> None:
    """`dst[0, 0, i]` and `dst[0, 1, i]`: where the segment of element i begins and ends.

    Padding, of segment 0, has the bounds n and -1.
    """
    core = current()
    in_sbuf("gpsimd-psum", dst, segment_ids)
    number = segment_ids.free_size
    require(
        segment_ids.shape[0] == 1 and (dst.shape[0], dst.free_size) == (1, 2 * number),
        "same-shape",
        f"{dst} must have shape [1, 2, {number}], {segment_ids} one partition",
    )
    work = cost.elementwise(core.machine, Engine.gpsimd, [dst])
    if core.issue("sequence_bounds", Engine.gpsimd, [segment_ids], [dst], work):
        ids = rows(segment_ids)[0]
        is_first = np.append(True, ids[1:] != ids[:-1])
        starts = np.maximum.accumulate(np.where(is_first, np.arange(number), 0))
        ends = np.append(np.flatnonzero(is_first)[1:], number)[np.cumsum(is_first) - 1]
        bounds = np.stack([np.where(ids == 0, number, starts), np.where(ids == 0, -1, ends)])
        write(dst, bounds.reshape(dst.shape))


def topk(
    val_dst: NkiTensor, idx_dst: NkiTensor, src: NkiTensor, n: int, name: str | None = None
) -> None:
    """The largest elements of each 16 partitions, in ascending order, and where they were.

    Element i of n is in partition i % 16, column i // 16, and result j of the columns of `val_dst`
    likewise, so that only the first columns are written.
    """
    core = current()
    in_sbuf("gpsimd-psum", val_dst, idx_dst, src)
    number = val_dst.free_size
    require(
        (val_dst.dtype.name, idx_dst.dtype.name, src.dtype.name)
        == ("bfloat16", "uint32", "bfloat16")
        and val_dst.shape == idx_dst.shape
        and val_dst.shape[0] == src.shape[0]
        and src.shape[0] % 16 == 0,
        "gather-index",
        f"{val_dst} and {idx_dst} from {src}: bfloat16 and uint32 [P, k] from bfloat16 [P, N], "
        "where P is a multiple of 16",
    )
    require(
        8 <= n < 65536 and n <= 16 * src.free_size and 1 <= number <= min(n, 32767),
        "topk-size",
        f"{number} of n={n} elements in {src}: n is from 8 to 65535 and fits, k is at most n",
    )
    work = cost.cycles(core.machine, Engine.gpsimd, 4 * n + number)
    read = src.reshape((src.shape[0], src.free_size))[:, 0 : -(-n // 16)]
    if not core.issue("topk", Engine.gpsimd, [read], [val_dst, idx_dst], work, marks=False):
        mark_written(val_dst)
        mark_written(idx_dst)
        return
    for first in range(0, src.shape[0], 16):
        snake = rows(read)[first : first + 16].T.reshape(-1)[:n]
        # Of equal elements the first is taken.
        best = np.argsort(-snake, kind="stable")[:number][::-1]
        _write_snake(val_dst, first, snake[best])
        _write_snake(idx_dst, first, best)


def _write_snake(dst: NkiTensor, first: int, values: Array) -> None:
    """Write `values` down 16 partitions, column by column, and mark them as written."""
    core, width = current(), -(-values.size // 16)
    part = dst.reshape((dst.shape[0], dst.free_size))[first : first + 16, 0:width]
    at = np.arange(16 * width).reshape(width, 16).T
    is_result = at < values.size
    new = core.numerics.encode(dst.dtype, values[np.minimum(at, values.size - 1)])
    write_raw(part, np.where(is_result, new, raw_rows(part)))
    mark_written(part, is_result)

"""Moving and filling tiles on chip."""

from __future__ import annotations

from typing import Any

import numpy as np

from nxdi.kernels.sim import cost
from nxdi.kernels.sim.core import current
from nxdi.kernels.sim.enums import engine as Engine
from nxdi.kernels.sim.isa.common import (
    has_psum,
    not_both_psum,
    not_gpsimd_psum,
    on_chip,
    same_dtype,
    same_shape,
)
from nxdi.kernels.sim.registers import value_of
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor
from nxdi.kernels.sim.validity import mark_written
from nxdi.kernels.sim.values import raw_rows, rows, write, write_raw


def tensor_copy(
    dst: NkiTensor, src: NkiTensor, engine: Engine = Engine.unknown, name: str | None = None
) -> None:
    """`dst = src`: bit for bit where the dtypes are equal, else through float32."""
    core = current()
    same_shape(dst, src)
    engines = [Engine.vector, Engine.scalar] if core.machine.generation >= 3 else [Engine.vector]
    if not has_psum(dst, src) and engine is Engine.gpsimd:
        engines.append(Engine.gpsimd)
    not_gpsimd_psum(engine, dst, src)
    on = core.choose(engine, *engines)
    work = cost.elementwise(core.machine, on, [dst, src])
    if core.issue("tensor_copy", on, [src], [dst], work):
        if dst.dtype is src.dtype:
            write_raw(dst, raw_rows(src))
        else:
            write(dst, rows(src))


def memset(
    dst: NkiTensor, value: Any, engine: Engine = Engine.unknown, name: str | None = None
) -> None:
    """Every element of `dst` becomes `value`."""
    core = current()
    on_chip(dst)
    is_whole = float(value).is_integer()
    require(
        (dst.dtype.is_float or is_whole) and not (dst.dtype.packs and value != 0),
        "memset-value",
        f"{value!r} is not a value of {dst.dtype}; give an integer, or 0 for packed dtypes",
    )
    not_gpsimd_psum(engine, dst)
    engines = [Engine.vector] if has_psum(dst) else [Engine.vector, Engine.gpsimd]
    on = core.choose(engine, *engines)
    if core.issue("memset", on, [], [dst], cost.elementwise(core.machine, on, [dst])):
        kind = np.float32 if dst.dtype.is_float else np.int64
        filled = core.numerics.encode(dst.dtype, np.full((1,), value, kind))
        write_raw(dst, np.broadcast_to(filled, dst.shape))


def tensor_copy_predicated(
    dst: NkiTensor,
    src: float | NkiTensor,
    predicate: NkiTensor,
    reverse_pred: bool = False,
    name: str | None = None,
) -> None:
    """`dst = src` where `predicate` is not zero; elsewhere `dst` stays."""
    core = current()
    same_shape(dst, src, predicate)
    require(
        predicate.dtype.name in ("uint8", "uint16", "uint32"),
        "predicate-dtype",
        f"predicate {predicate} must be uint8, uint16 or uint32",
    )
    not_both_psum(src, predicate)
    if isinstance(src, NkiTensor):
        same_dtype(dst, src)
    work = cost.two_tiles(core.machine, Engine.vector, [dst, predicate])
    computes = core.issue(
        "tensor_copy_predicated", Engine.vector, [src, predicate], [dst], work, marks=False
    )
    if not computes:
        mark_written(dst)
        return
    chosen = (raw_rows(predicate) != 0) ^ reverse_pred
    if isinstance(src, NkiTensor):
        new = raw_rows(src)
    else:
        new = core.numerics.encode(dst.dtype, np.full((1, 1), src, np.float32))
    write_raw(dst, np.where(chosen, new, raw_rows(dst)))
    mark_written(dst, chosen.reshape(dst.shape))


def nc_stream_shuffle(
    dst: NkiTensor, src: NkiTensor, shuffle_mask: Any, name: str | None = None
) -> None:
    """Within each 32 partitions, partition i of `dst` becomes `shuffle_mask[i]` of `src`."""
    core = current()
    mask = [value_of(item) for item in shuffle_mask]
    on_chip(dst, src)
    same_dtype(dst, src)
    require(
        dst.free_size == src.free_size,
        "same-shape",
        f"{dst} and {src} differ in elements per partition",
    )
    require(
        len(mask) == 32 and all(0 <= item < 32 or item == 255 for item in mask),
        "shuffle-mask",
        f"{mask} must have 32 entries of 0..31, or 255 to leave a partition",
    )
    work = cost.elementwise(core.machine, Engine.vector, [dst, src])
    keeps = 255 in mask
    if not core.issue("nc_stream_shuffle", Engine.vector, [src], [dst], work, marks=not keeps):
        mark_written(dst)
        return
    old, values = raw_rows(dst).copy(), raw_rows(src)
    written = np.zeros(dst.shape, bool)
    for row in range(dst.shape[0]):
        source = mask[row % 32]
        if source != 255:
            old[row] = values[row - row % 32 + source]
            written[row] = True
    write_raw(dst, old)
    mark_written(dst, written)

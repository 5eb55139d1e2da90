"""DMA: copies between memories, gathers, scatters, transposes, sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from nxdi.kernels.sim import cost
from nxdi.kernels.sim.core import current
from nxdi.kernels.sim.enums import dge_mode as Dge
from nxdi.kernels.sim.enums import engine as Engine
from nxdi.kernels.sim.enums import oob_mode as Oob
from nxdi.kernels.sim.isa.common import PSUM, since
from nxdi.kernels.sim.ops import as_op
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor
from nxdi.kernels.sim.trace import Work
from nxdi.kernels.sim.values import numbers, places_of, raw, write, write_raw


def _no_psum(*tensors: NkiTensor) -> None:
    for tensor in tensors:
        require(
            tensor.buffer is not PSUM,
            "dma-psum",
            f"DMA cannot access {tensor}; copy it to SBUF with tensor_copy",
        )


def _check_index(tensor: NkiTensor, mode: Dge) -> None:
    """The rules of a view with indices known only at run time."""
    index = tensor.index
    if index is None or index.vector is None:
        return
    since(3, "gather and scatter by DMA")
    require(
        mode in (Dge.unknown, Dge.swdge),
        "indirect-dge",
        f"{mode} cannot gather or scatter; use dge_mode.swdge",
    )
    require(
        not tensor.is_on_chip, "indirect-side", f"{tensor} is indexed on chip; index the HBM side"
    )
    rows = index.vector
    require(
        rows.is_on_chip
        and rows.dtype.name in ("int32", "uint32")
        and rows.free_size == 1
        and rows.shape[0] >= tensor.shape[0],
        "indirect-index",
        f"index {rows} must be int32 or uint32 [{tensor.shape[0]}, 1] in SBUF",
    )


def _check_unique(tensor: NkiTensor) -> None:
    """The indices of a scatter differ."""
    if tensor.index is None:
        return
    places, inside = places_of(tensor)
    kept = places[inside]
    repeated = kept.size - np.unique(kept).size
    require(
        repeated == 0,
        "scatter-unique",
        f"{repeated} elements are written more than once, in no defined order; use each index once",
    )


def dma_copy(
    dst: NkiTensor,
    src: NkiTensor,
    priority: Any = None,
    oob_mode: Oob = Oob.error,
    dge_mode: Dge = Dge.unknown,
    engine: Engine = Engine.unknown,
    name: str | None = None,
) -> None:
    """`dst = src`, cast through float32 where the dtypes differ."""
    core = current()
    _no_psum(dst, src)
    require(dst.size == src.size, "dma-elements", f"{dst} and {src} have different sizes")
    require(
        oob_mode is Oob.error or dst.index is not None or src.index is not None,
        "oob-skip",
        "oob_mode.skip needs an index; give .ap() a vector_offset or scalar_offset",
    )
    if dge_mode is Dge.hwdge:
        since(3, "dge_mode.hwdge")
        require(
            dst.dtype is src.dtype,
            "hwdge-dtype",
            f"hwdge moves bytes, so {dst.dtype} from {src.dtype} needs dge_mode.swdge",
        )
    for tensor in (dst, src):
        _check_index(tensor, dge_mode)
    work = cost.transfer(core.machine, dst, src)
    if core.issue("dma_copy", Engine.dma, [src], [dst], work):
        _check_unique(dst)
        _copy(dst, src, oob_mode is Oob.skip)


def _copy(dst: NkiTensor, src: NkiTensor, skips: bool) -> None:
    is_cast = dst.dtype is not src.dtype
    read, store = (numbers, write) if is_cast else (raw, write_raw)
    values = read(src, skips=skips)
    if src.index is not None:
        # What is out of range stays as it is in dst.
        _, inside = places_of(src)
        kept = read(dst, skips=skips)
        values = np.where(inside, values, kept.reshape(inside.shape))
    store(dst, values.reshape(dst.shape), skips=skips)


_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}


def dma_transpose(
    dst: NkiTensor,
    src: NkiTensor,
    axes: tuple[int, ...] | None = None,
    priority: Any = None,
    dge_mode: Dge = Dge.unknown,
    oob_mode: Oob = Oob.error,
    name: str | None = None,
) -> None:
    """`dst = src` with its axes turned: (1, 0), (2, 1, 0) or (3, 1, 2, 0)."""
    core = current()
    _no_psum(dst, src)
    require(
        dst.dtype.itemsize == 2 and dst.dtype is src.dtype,
        "dma-transpose-dtype",
        f"{dst} from {src}: both need one dtype of 2 bytes",
    )
    order = _AXES.get(src.ndim, ())
    turned = tuple(src.shape[d] for d in order)
    require(
        tuple(axes or order) == order and src.shape[-1] <= 128 and dst.shape == turned,
        "dma-transpose-shape",
        f"{dst} from {src} by {axes or order}: axes are {order}, dst {turned}, at most 128 columns",
    )
    if dge_mode is Dge.hwdge:
        since(3, "dge_mode.hwdge")
        rows = (16,) if src.ndim == 2 else (1, 2, 4, 8, 16)
        require(
            src.shape[0] in rows and (src.shape[0] * src.shape[-2]) % 16 == 0,
            "dma-transpose-shape",
            f"hwdge transposes {rows} rows at a time, not {src}; use another dge_mode",
        )
    slowdown = 1 / 0.9 if not src.is_on_chip else 2.0
    work = cost.transfer(core.machine, dst, src, slowdown)
    if core.issue("dma_transpose", Engine.dma, [src], [dst], work):
        write_raw(dst, np.ascontiguousarray(raw(src).transpose(order)))


def dma_compute(
    dst: NkiTensor,
    srcs: list[NkiTensor],
    reduce_op: Any,
    scales: list[float] | None = None,
    unique_indices: bool = True,
    oob_mode: Oob = Oob.error,
    name: str | None = None,
) -> None:
    """`dst` = sum of `srcs` in float32; a scatter-add where `dst` is also a source."""
    core = current()
    op = as_op(reduce_op)
    is_sum = op.name == "add" and all(scale == 1.0 for scale in scales or [])
    require(
        is_sum and 1 <= len(srcs) <= 16,
        "dma-accumulate",
        f"{op} of {len(srcs)} tensors scaled by {scales}; add at most 16, with scales of 1",
    )
    _no_psum(dst, *srcs)
    for tensor in (dst, *srcs):
        require(tensor.size == dst.size, "dma-elements", f"{dst} and {tensor} differ in size")
        _check_index(tensor, Dge.unknown)
    one = cost.transfer(core.machine, dst, srcs[0], 2.0 if core.machine.generation < 4 else 1.0)
    work = Work(
        one.ns * len(srcs),
        one.latency_ns,
        hbm_bytes=one.hbm_bytes * len(srcs),
        moved_bytes=one.moved_bytes * len(srcs),
        queues=one.queues,
    )
    if core.issue("dma_compute", Engine.dma, srcs, [dst], work):
        if unique_indices:
            _check_unique(dst)
        skips = oob_mode is Oob.skip
        total = np.add.reduce([numbers(src, skips=skips).reshape(dst.shape) for src in srcs])
        write(dst, total, skips=skips)

"""The vector engine's searches: the largest elements, where they are, and taking them out."""

from __future__ import annotations

import numpy as np

from nxdi.kernels.sim import cost
from nxdi.kernels.sim.core import current
from nxdi.kernels.sim.enums import engine as Engine
from nxdi.kernels.sim.isa.common import on_chip, same_shape
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor
from nxdi.kernels.sim.values import rows, write


def _check(data: NkiTensor, *eights: NkiTensor | None, least: int = 8) -> None:
    on_chip(data, *eights)
    require(
        least <= data.free_size <= 16384,
        "max8-size",
        f"{data} has {data.free_size} elements per partition, not {least} to 16384; split it",
    )
    for tensor in eights:
        require(
            tensor is None or (tensor.shape[0], tensor.free_size) == (data.shape[0], 8),
            "max8-size",
            f"{tensor} must have shape [{data.shape[0]}, 8]",
        )


def _check_indices(dst: NkiTensor | None) -> None:
    require(
        dst is None or dst.dtype.name in ("uint16", "uint32"),
        "gather-index",
        f"indices {dst} must be uint16 or uint32",
    )


def max8(dst: NkiTensor, src: NkiTensor, name: str | None = None) -> None:
    """The 8 largest elements of each partition, in descending order."""
    core = current()
    _check(src, dst)
    work = cost.cycles(core.machine, Engine.vector, src.free_size)
    if core.issue("max8", Engine.vector, [src], [dst], work):
        values = rows(src)
        top = np.partition(values, values.shape[1] - 8, axis=1)[:, -8:]
        write(dst, np.sort(top, axis=1)[:, ::-1])


def nc_find_index8(
    dst: NkiTensor, data: NkiTensor, vals: NkiTensor, name: str | None = None
) -> None:
    """Where each of 8 values is; the n-th of equal ones is at the n-th place, none at all-ones."""
    core = current()
    _check(data, dst, vals)
    _check_indices(dst)
    work = cost.cycles(core.machine, Engine.vector, data.free_size)
    if core.issue("nc_find_index8", Engine.vector, [data, vals], [dst], work):
        values, wanted = rows(data), rows(vals)
        found = np.full(wanted.shape, np.iinfo(dst.dtype.carrier).max, np.int64)
        for row in range(values.shape[0]):
            for at in range(8):
                places = np.flatnonzero(values[row] == wanted[row, at])
                earlier = int(np.count_nonzero(wanted[row, :at] == wanted[row, at]))
                if earlier < places.size:
                    found[row, at] = places[earlier]
        write(dst, found)


def nc_match_replace8(
    dst: NkiTensor,
    data: NkiTensor,
    vals: NkiTensor,
    imm: float,
    dst_idx: NkiTensor | None = None,
    name: str | None = None,
) -> None:
    """`dst = data` with the first match of each of 8 values, the last value first, set to `imm`."""
    core = current()
    same_shape(dst, data)
    _check(data, vals, dst_idx, least=1)
    _check_indices(dst_idx)
    writes = [dst] if dst_idx is None else [dst, dst_idx]
    work = cost.cycles(core.machine, Engine.vector, data.free_size)
    if core.issue("nc_match_replace8", Engine.vector, [data, vals], writes, work):
        values, wanted = rows(data).copy(), rows(vals)
        found = np.full(wanted.shape, -1, np.int64)
        for row in range(values.shape[0]):
            for at in range(7, -1, -1):
                places = np.flatnonzero(values[row] == wanted[row, at])
                if places.size:
                    found[row, at] = places[0]
                    values[row, places[0]] = imm
        write(dst, values)
        if dst_idx is not None:
            missing = np.iinfo(dst_idx.dtype.carrier).max
            write(dst_idx, np.where(found < 0, missing, found))

"""Microscaling on gen4: float8 and float4 numbers that share a scale per 8 partitions x 4.

The scales of a group are powers of two, kept as exponents plus 127. Those of each 32 partitions
are in the first 4 partitions of the same 32 in the tile of scales.
Source: OCP Microscaling Formats 1.0, with the scale twice that of its sample code.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nxdi.kernels.sim import cost
from nxdi.kernels.sim.core import current
from nxdi.kernels.sim.dtypes import DTYPES, Array, pack, unpack
from nxdi.kernels.sim.enums import engine as Engine
from nxdi.kernels.sim.isa.common import PSUM, SBUF, in_sbuf, since
from nxdi.kernels.sim.isa.matmul import accumulates, note_result
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor
from nxdi.kernels.sim.values import raw_rows, rows, write, write_raw


def quantize_mx(
    dst: NkiTensor, src: NkiTensor, dst_scale: NkiTensor, name: str | None = None
) -> None:
    """`src` [P, 4 N] of 16 bits as packed numbers [P, N] and scales [P (or 4), N]."""
    core = current()
    since(4, "quantize_mx")
    in_sbuf("mx-operands", dst, src, dst_scale)
    is_packed = dst.dtype.name in ("float8_e4m3fn_x4", "float8_e5m2_x4")
    is_short = src.dtype.is_float and src.dtype.itemsize == 2
    _check(dst, dst_scale, is_packed and is_short and src.free_size == 4 * dst.free_size, src)
    work = cost.cycles(core.machine, Engine.vector, src.free_size / 4)
    scale_rows = _scale_rows(dst_scale)
    computes = core.issue("quantize_mx", Engine.vector, [src], [dst, *scale_rows], work)
    if not computes:
        return
    values = rows(src).reshape(src.shape[0] // 8, 8, dst.free_size, 4)
    largest = np.abs(values).max(axis=(1, 3))
    element = DTYPES[dst.dtype.packs]
    emax = int(np.floor(np.log2(element.largest)))
    exponent = np.floor(np.log2(np.maximum(largest, 2.0**-126))) - (emax - 1)
    exponent = np.where(largest == 0, -127, np.clip(exponent, -127, 127))
    scaled = values / np.exp2(exponent)[:, None, :, None]
    write_raw(dst, pack(dst.dtype, scaled.reshape(*dst.shape, 4).astype(np.float32)))
    for at, part in enumerate(scale_rows):
        write(part, (exponent + 127).astype(np.int64)[4 * at : 4 * at + 4])


def nc_matmul_mx(  # noqa: PLR0913  # the signature of NKI
    dst: NkiTensor,
    stationary: NkiTensor,
    moving: NkiTensor,
    stationary_scale: NkiTensor,
    moving_scale: NkiTensor,
    tile_position: Any = None,
    tile_size: Any = None,
    accumulate: bool | None = None,
    name: str | None = None,
) -> None:
    """`dst (+)=` the product over the partitions and the 4 numbers of each element."""
    core = current()
    since(4, "nc_matmul_mx")
    for tile, scale in ((stationary, stationary_scale), (moving, moving_scale)):
        is_packed = bool(tile.dtype.packs) and tile.buffer is SBUF
        _check(tile, scale, is_packed and tile.shape[0] == moving.shape[0], tile)
    columns, width = stationary.free_size, moving.free_size
    most = 512 if dst.dtype.itemsize == 4 else 1024
    require(
        dst.buffer is PSUM
        and dst.dtype.name in ("float32", "bfloat16")
        and (dst.shape[0], dst.free_size) == (columns, width)
        and columns <= 128
        and columns % 2 == 0
        and width <= most,
        "mx-operands",
        f"{dst} must be [{columns}, {width}] in PSUM, with an even number of at most 128 rows "
        f"and at most {most} columns",
    )
    adds = accumulates(dst, accumulate)
    flops = 2 * 4 * stationary.shape[0] * columns * width
    work = cost.matmul(core.machine, columns, width, 1.0, flops)
    reads = [stationary, moving, *_scale_rows(stationary_scale), *_scale_rows(moving_scale)]
    reads += [dst] if adds else []
    computes = core.issue("nc_matmul_mx", Engine.tensor, reads, [dst], work)
    note_result(dst)
    if computes:
        left, right = _numbers(stationary, stationary_scale), _numbers(moving, moving_scale)
        product = np.einsum("kmi,kni->mn", left, right, optimize=True)
        write(dst, product + rows(dst) if adds else product)


def _check(tile: NkiTensor, scale: NkiTensor, is_ok: bool, source: NkiTensor) -> None:
    partitions = tile.shape[0]
    expected = 4 if partitions == 32 else partitions
    require(
        is_ok
        and partitions % 32 == 0
        and source.shape[0] == partitions
        and scale.dtype.name in ("uint8", "float8_e8m0fnu")
        and scale.shape[0] in (expected, partitions)
        and scale.free_size == tile.free_size,
        "mx-operands",
        f"{tile} with scales {scale}, from {source}: packed tiles need multiples of 32 partitions, "
        f"and uint8 scales [{expected}, {tile.free_size}]",
    )


def _scale_rows(scale: NkiTensor) -> list[NkiTensor]:
    """The four partitions of each 32 that hold scales."""
    return [scale[at : at + 4] for at in range(0, scale.shape[0], 32)]


def _numbers(tile: NkiTensor, scale: NkiTensor) -> Array:
    """Float32 [K, N, 4], scaled."""
    exponents = np.concatenate([raw_rows(part) for part in _scale_rows(scale)]).astype(np.int64)
    factors = np.exp2((exponents - 127).astype(np.float32)).repeat(8, axis=0)
    return unpack(tile.dtype, raw_rows(tile)) * factors[:, :, None]

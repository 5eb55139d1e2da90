"""The projection of attention's result: out[t, :] = x[t, :] @ w + bias, for prefill and decode.

x has the heads side by side. Its rows are transposed once per group of 512; weights then stream
through in tiles of 128 x 512, or wider ones where there are few rows and the weights are all the
time there is.
"""

from __future__ import annotations

from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import torch
from torch import Tensor

from nxdi.kernels.nki.copies import copy_out
from nxdi.kernels.nki.matmul import Call, declined_shapes
from nxdi.kernels.nki.tiles import BANK, TILE, is_given

__all__ = ["Call", "attention_output", "reference", "supports"]

SUMS = 4  # banks of sums, so that the next ones can begin while these are stored


def supports(call: Call) -> str | None:
    """Why the kernel cannot serve a call, or None."""
    reason = declined_shapes(call)
    if reason is not None:
        return reason
    if call.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"dtype {call.dtype} is no float of 16 or 32 bits"
    # Rows of x, as they are and transposed, for two groups.
    size = -(-call.x_shape[1] // TILE) * TILE * call.dtype.itemsize
    size = 2 * size + 2 * size * min(SUMS, -(-call.x_shape[0] // TILE))
    return None if size <= 136 * 1024 else f"{call.x_shape[1]} columns of x do not fit SBUF"


def reference(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same in torch, summed in float32. x [T, H], w [H, I], bias [1, I] -> [T, I]."""
    y = x.float() @ w.float()
    return (y if bias is None else y + bias.float()).to(x.dtype)


@nki.jit
def attention_output(x: Any, w: Any, bias: Any = None) -> Any:
    """See `reference`; all tensors are in memory."""
    num_rows, columns = x.shape[0], w.shape[1]
    out = nl.ndarray((num_rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    row = []
    if is_given(bias):
        row = load_bias(bias)
    tiles = min(SUMS, -(-num_rows // TILE))
    width = SUMS // tiles * BANK
    for first in range(0, num_rows, tiles * TILE):
        group = min(tiles * TILE, num_rows - first)
        turned = load_turned(x, first, group)
        for left in range(0, columns, width):
            sums = multiply(turned, w, row, left, min(width, columns - left))
            store_sums(out, sums, first, left)
    return out


def load_bias(bias: Any) -> Any:
    """The bias, and ones to multiply it with: it is one more row of weights."""
    tile = nl.ndarray(bias.shape, dtype=bias.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=bias)
    ones = nl.ndarray((1, TILE), dtype=bias.dtype, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)
    return [ones, tile]


def load_turned(x: Any, first: int, group: int) -> Any:
    """Rows of x with their columns on the partitions: [128, H / 128, rows]."""
    hidden = x.shape[1]
    blocks = -(-hidden // TILE)
    turned = nl.ndarray((TILE, blocks, group), dtype=x.dtype, buffer=nl.sbuf)
    for start in range(0, group, TILE):
        rows = min(TILE, group - start)
        tile = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x[nl.ds(first + start, rows), :])
        for k in range(blocks):
            part = min(TILE, hidden - k * TILE)
            block = nl.ndarray((part, rows), dtype=x.dtype, buffer=nl.psum)
            source = tile[:, nl.ds(k * TILE, part)]
            nisa.nc_transpose(dst=block, data=source, engine=nisa.engine.tensor)
            copy_out(turned[0:part, k, nl.ds(start, rows)], block, k % 2 == 0)
    return turned


def multiply(turned: Any, w: Any, row: Any, left: int, width: int) -> Any:
    """Sums over H in PSUM, for each 128 rows and 512 columns."""
    group, hidden = turned.shape[2], w.shape[0]
    sums = []
    for start in range(0, group, TILE):
        rows = min(TILE, group - start)
        banks = []
        for at in range(0, width, BANK):
            total = nl.ndarray((rows, min(BANK, width - at)), dtype=nl.float32, buffer=nl.psum)
            if len(row) > 0:
                moving = row[1][:, nl.ds(left + at, total.shape[1])]
                nisa.nc_matmul(dst=total, stationary=row[0][:, 0:rows], moving=moving)
            banks.append(total)
        sums.append(banks)
    for k in range(turned.shape[1]):
        part = min(TILE, hidden - k * TILE)
        weights = nl.ndarray((part, width), dtype=w.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=weights, src=w[nl.ds(k * TILE, part), nl.ds(left, width)])
        for tile in range(len(sums)):
            for bank in range(len(sums[tile])):
                total = sums[tile][bank]
                nisa.nc_matmul(
                    dst=total,
                    stationary=turned[0:part, k, nl.ds(tile * TILE, total.shape[0])],
                    moving=weights[:, nl.ds(bank * BANK, total.shape[1])],
                )
    return sums


def store_sums(out: Any, sums: Any, first: int, left: int) -> None:
    """Cast the sums and write them where they belong."""
    for tile in range(len(sums)):
        banks = sums[tile]
        rows = banks[0].shape[0]
        width = (len(banks) - 1) * BANK + banks[-1].shape[1]
        result = nl.ndarray((rows, width), dtype=out.dtype, buffer=nl.sbuf)
        for bank in range(len(banks)):
            place = result[:, nl.ds(bank * BANK, banks[bank].shape[1])]
            copy_out(place, banks[bank], (tile + bank) % 2 == 0)
        nisa.dma_copy(dst=out[nl.ds(first + tile * TILE, rows), nl.ds(left, width)], src=result)

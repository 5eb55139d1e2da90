"""What several kernels do with tiles: turn them, repeat a row for all, normalise rows."""

from __future__ import annotations

from typing import Any

import nki.isa as nisa
import nki.language as nl

TILE = 128  # partitions, and columns of a stationary tile
BANK = 512  # float32 elements of a PSUM bank


def is_given(tensor: Any) -> Any:
    """Whether an optional argument was given."""
    return tensor != None  # noqa: E711  # compilers up to NKI 0.6 reject `is`


def spread_row(row: Any, partitions: int) -> Any:
    """row [1, N] in memory -> [partitions, N]: DMA reads it once per partition."""
    width = row.shape[1]
    everywhere = nl.ndarray((partitions, width), dtype=row.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=everywhere, src=row.ap(pattern=[[0, partitions], [1, width]]))
    return everywhere


def load_turned(x: Any, first: int, group: int) -> Any:
    """Rows of x with their columns on the partitions: [128, H / 128, rows]."""
    hidden = x.shape[1]
    turned = nl.ndarray((TILE, hidden // TILE, group), dtype=x.dtype, buffer=nl.sbuf)
    for start in range(0, group, TILE):
        rows = min(TILE, group - start)
        tile = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x[nl.ds(first + start, rows), :])
        turn(turned, tile.reshape((rows, hidden // TILE, TILE)), start)
    return turned


def turn(turned: Any, blocks: Any, start: int) -> None:
    """Write blocks [rows, N, 128] to turned [128, N, ...], from place `start` on."""
    rows = blocks.shape[0]
    for k in range(turned.shape[1]):
        block = nl.ndarray((TILE, rows), dtype=blocks.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=block, data=blocks[:, k, :], engine=nisa.engine.tensor)
        nisa.tensor_copy(dst=turned[:, k, nl.ds(start, rows)], src=block)


def inverse_rms(tile: Any, eps: float) -> Any:
    """rsqrt(mean(tile ** 2) + eps) of each row, float32 [rows, 1]."""
    rows, width = tile.shape
    squares = nl.ndarray((rows, width), dtype=tile.dtype, buffer=nl.sbuf)
    total = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(
        dst=squares,
        op=nl.square,
        data=tile,
        reduce_op=nl.add,
        reduce_res=total,
        reduce_cmd=nisa.reduce_cmd.reset_reduce,
    )
    # gen2 takes a bias as a column only.
    eps_column = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=eps_column, value=eps)
    scale = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=scale, op=nl.rsqrt, data=total, scale=1.0 / width, bias=eps_column)
    return scale


def normalize(tile: Any, gamma: Any, eps: float) -> Any:
    """RMSNorm of a tile [rows, H] with gamma [rows, H], in the tile's dtype."""
    result = nl.ndarray(tile.shape, dtype=tile.dtype, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=result,
        data=tile,
        op0=nl.multiply,
        operand0=inverse_rms(tile, eps),
        op1=nl.multiply,
        operand1=gamma,
    )
    return result

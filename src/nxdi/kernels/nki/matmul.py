"""Matrix product of activations and weights: out[t, :] = x[t, :] @ w, for prefill and decode.

Weights stream from memory once per 256 rows of x, in tiles of 128 x 1024; the transposed rows stay
in SBUF as the stationary operand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import torch
from torch import Tensor

from nxdi.kernels.nki.tiles import BANK, TILE, load_turned

GROUP_ROWS = 256  # rows of x that share a pass over the weights
WIDTH = 1024  # columns of a weight tile: 2 KiB of 16-bit elements, two banks


@dataclass(frozen=True)
class Call:
    """What a call of the kernel is decided on: x [T, H] and w [H, I]."""

    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    dtype: torch.dtype


def supports(call: Call) -> str | None:
    """Why the kernel cannot serve a call, or None."""
    reason = declined_shapes(call)
    if reason is not None:
        return reason
    if call.x_shape[1] % TILE:
        return f"hidden size {call.x_shape[1]} is no multiple of {TILE}"
    if call.dtype not in (torch.bfloat16, torch.float16):
        return f"dtype {call.dtype} is no float of 16 bits"
    # A group of transposed rows, and two tiles of rows as they are.
    size = call.x_shape[1] * (GROUP_ROWS // TILE + 2) * 2
    return None if size <= 128 * 1024 else f"{call.x_shape[1]} columns of x do not fit SBUF"


def declined_shapes(call: Call) -> str | None:
    """Why there is no product of such operands, or None."""
    if len(call.x_shape) == len(call.w_shape) == 2 and call.x_shape[1] == call.w_shape[0]:
        return None
    return f"x {call.x_shape} and w {call.w_shape} are no [T, H] and [H, I]"


def reference(x: Tensor, w: Tensor) -> Tensor:
    """The same in torch, summed in float32."""
    return (x.float() @ w.float()).to(x.dtype)


@nki.jit
def matmul(x: Any, w: Any) -> Any:
    """x [T, H] and w [H, I] in memory -> [T, I]."""
    num_rows, columns = x.shape[0], w.shape[1]
    out = nl.ndarray((num_rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    for first in range(0, num_rows, GROUP_ROWS):
        group = min(GROUP_ROWS, num_rows - first)
        turned = load_turned(x, first, group)
        for left in range(0, columns, WIDTH):
            width = min(WIDTH, columns - left)
            sums = multiply(turned, w, left, width)
            store_sums(out, sums, first, left, width)
    return out


def multiply(turned: Any, w: Any, left: int, width: int) -> Any:
    """Sums over H in PSUM, per 128 rows and 512 columns."""
    group = turned.shape[2]
    sums = []
    for start in range(0, group, TILE):
        row_sums = []
        for at in range(0, width, BANK):
            shape = (min(TILE, group - start), min(BANK, width - at))
            row_sums.append(nl.ndarray(shape, dtype=nl.float32, buffer=nl.psum))
        sums.append(row_sums)
    for k in range(turned.shape[1]):
        weights = nl.ndarray((TILE, width), dtype=w.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=weights, src=w[nl.ds(k * TILE, TILE), nl.ds(left, width)])
        for row in range(len(sums)):
            for column in range(len(sums[row])):
                total = sums[row][column]
                nisa.nc_matmul(
                    dst=total,
                    stationary=turned[:, k, nl.ds(row * TILE, total.shape[0])],
                    moving=weights[:, nl.ds(column * BANK, total.shape[1])],
                )
    return sums


def store_sums(out: Any, sums: Any, first: int, left: int, width: int) -> None:
    """Cast the sums and write them where they belong."""
    for row in range(len(sums)):
        rows = sums[row][0].shape[0]
        tile = nl.ndarray((rows, width), dtype=out.dtype, buffer=nl.sbuf)
        for column in range(len(sums[row])):
            total = sums[row][column]
            nisa.tensor_copy(dst=tile[:, nl.ds(column * BANK, total.shape[1])], src=total)
        place = out[nl.ds(first + row * TILE, rows), nl.ds(left, width)]
        nisa.dma_copy(dst=place, src=tile)

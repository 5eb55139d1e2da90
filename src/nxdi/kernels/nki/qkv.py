"""Query, key and value projections in one pass over the rows, with RMSNorm before, rotation after.

Weights stream from memory as the moving operand. Partition p has elements p * H / 128 to
(p + 1) * H / 128 of the hidden size, so that neighbouring rows of a narrow weight are one run of
memory. Normalised rows are turned on chip, and heads are rotated before they leave it, so neither
costs memory traffic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import torch
from torch import Tensor

from nxdi.kernels.nki.rope import declines_angles, load_angles, turn_heads, turned
from nxdi.kernels.nki.tiles import BANK, TILE, is_given, normalize, spread_row, turn

GROUP_ROWS = 256  # rows of x that share a pass over the weights
SUM_BANKS = 4  # of PSUM, half of which is being filled while the other is read
TRANSFER = 2048  # elements per partition of a transfer of weights, at least a row of a step


@dataclass(frozen=True)
class Call:
    """What a call of the kernel is decided on: x [T, H], weights [H, Nq * D] and [H, Nk * D].

    rotary_dim: the columns of cos and sin, or 0 if heads are not turned.
    """

    x_shape: tuple[int, ...]
    q_shape: tuple[int, ...]
    k_shape: tuple[int, ...]
    dtype: torch.dtype
    head_dim: int
    rotary_dim: int = 0


def supports(call: Call) -> str | None:
    """Why the kernel cannot serve a call, or None."""
    shapes = call.x_shape, call.q_shape, call.k_shape
    are_matrices = all(len(shape) == 2 for shape in shapes)
    if not are_matrices or not call.x_shape[1] == call.q_shape[0] == call.k_shape[0]:
        return f"x, q and k have shapes {shapes}; the kernel takes [T, H], [H, Nq * D], [H, Nk * D]"
    head_dim, columns = call.head_dim, (call.q_shape[1], call.k_shape[1])
    if columns[0] % head_dim or columns[1] % head_dim or head_dim > BANK:
        return f"{columns[0]} and {columns[1]} columns are no heads of {head_dim} <= {BANK}"
    if call.rotary_dim:
        reason = declines_angles(call.rotary_dim, head_dim)
        if reason is not None:
            return reason
    hidden = call.x_shape[1]
    if hidden % TILE:
        return f"hidden size {hidden} is no multiple of {TILE}"
    if call.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"dtype {call.dtype} is no float of 16 or 32 bits"
    # A group of turned rows; two tiles of rows, of normalised ones and of squares; gamma.
    size = hidden * (GROUP_ROWS // TILE + 7) * call.dtype.itemsize
    return None if size <= 144 * 1024 else f"{hidden} columns of x do not fit SBUF"


def reference(  # noqa: PLR0913  # the kernel's signature
    x: Tensor,
    q_w: Tensor,
    k_w: Tensor,
    v_w: Tensor,
    head_dim: int,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in torch, in float32 but for the normalised rows."""
    if gamma is not None:
        x = torch.rms_norm(x.float(), x.shape[-1:], gamma[0].float(), eps).to(x.dtype)
    sizes = q_w.shape[1], k_w.shape[1], v_w.shape[1]
    biases = [None] * 3 if bias is None else bias.float().split(sizes, dim=1)
    results = []
    for number, (w, added) in enumerate(zip((q_w, k_w, v_w), biases, strict=True)):
        result = x.float() @ w.float()
        result = result if added is None else result + added
        if cos is not None and sin is not None and number < 2:
            result = turned(result.unflatten(1, (-1, head_dim)), cos, sin).flatten(1)
        results.append(result.to(x.dtype))
    q, k, v = results
    return q, k, v


@nki.jit
def qkv(  # noqa: PLR0913  # what one pass over the rows can do
    x: Any,
    q_w: Any,
    k_w: Any,
    v_w: Any,
    head_dim: int,
    bias: Any = None,
    gamma: Any = None,
    cos: Any = None,
    sin: Any = None,
    eps: float = 1e-6,
) -> Any:
    """x [T, H], weights [H, Nq * D], [H, Nk * D] twice, bias [1, of all three], gamma [1, H].

    cos and sin [T, R] turn the first R elements of q and k. -> q [T, Nq * D], k and v [T, Nk * D].
    """
    num_rows = x.shape[0]
    weights = (q_w, k_w, v_w)
    outs = []
    for number in range(3):
        shape = (num_rows, weights[number].shape[1])
        outs.append(nl.ndarray(shape, dtype=x.dtype, buffer=nl.shared_hbm))
    gains = spread_row(gamma, min(TILE, num_rows)) if is_given(gamma) else None
    biases: Any = spread_row(bias, min(TILE, num_rows)) if is_given(bias) else None
    for first in range(0, num_rows, GROUP_ROWS):
        group = min(GROUP_ROWS, num_rows - first)
        rows = load_rows(x, gains, eps, first, group)
        angles = []
        for start in range(0, group, TILE):
            if is_given(cos):
                angles.append(load_angles(cos, sin, first + start, min(TILE, group - start)))
        at = 0
        for number in range(3):
            columns = weights[number].shape[1]
            own = biases[:, nl.ds(at, columns)] if is_given(bias) else None
            turning = angles if number < 2 else []
            project(outs[number], rows, weights[number], own, turning, head_dim, first)
            at += columns
    return outs[0], outs[1], outs[2]


def project(
    out: Any, rows: Any, w: Any, biases: Any, angles: Any, head_dim: int, first: int
) -> None:
    """Rows of `out` from `first` on: the product with w plus biases, turned if there are angles."""
    columns, tiles = w.shape[1], -(-rows.shape[2] // TILE)
    step = SUM_BANKS // tiles * BANK // head_dim * head_dim  # as many whole heads as have banks
    for left in range(0, columns, step):
        width = min(step, columns - left)
        sums = multiply(rows, w, left, width)
        for row in range(len(sums)):
            tile = gather_sums(sums[row], biases, left, width, out.dtype)
            if len(angles) > 0:
                heads = tile.reshape((tile.shape[0], width // head_dim, head_dim))
                turn_heads(heads, angles[row])
            place = out[nl.ds(first + row * TILE, tile.shape[0]), nl.ds(left, width)]
            nisa.dma_copy(dst=place, src=tile)


def multiply(turned_rows: Any, w: Any, left: int, width: int) -> Any:
    """Sums over H in PSUM, per 128 rows and 512 columns."""
    num_tiles, group = turned_rows.shape[1], turned_rows.shape[2]
    sums = []
    for start in range(0, group, TILE):
        banks = []
        for at in range(0, width, BANK):
            shape = (min(TILE, group - start), min(BANK, width - at))
            banks.append(nl.ndarray(shape, dtype=nl.float32, buffer=nl.psum))
        sums.append(banks)
    parts, step = w.reshape_dim(0, (TILE, num_tiles)), max(1, TRANSFER // width)
    for first in range(0, num_tiles, step):
        size = min(step, num_tiles - first)
        weights = nl.ndarray((TILE, size, width), dtype=w.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=weights, src=parts[:, nl.ds(first, size), nl.ds(left, width)])
        for k in range(size):
            for row in range(len(sums)):
                for column in range(len(sums[row])):
                    total = sums[row][column]
                    nisa.nc_matmul(
                        dst=total,
                        stationary=turned_rows[:, first + k, nl.ds(row * TILE, total.shape[0])],
                        moving=weights[:, k, nl.ds(column * BANK, total.shape[1])],
                    )
    return sums


def load_rows(x: Any, gains: Any, eps: float, first: int, group: int) -> Any:
    """Rows of x, normalised if there are gains: [128, H / 128, T], neighbours on a partition."""
    hidden = x.shape[1]
    result = nl.ndarray((TILE, hidden // TILE, group), dtype=x.dtype, buffer=nl.sbuf)
    for start in range(0, group, TILE):
        rows = min(TILE, group - start)
        tile = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x[nl.ds(first + start, rows), :])
        if is_given(gains):
            tile = normalize(tile, gains[0:rows, :], eps)
        turn(result, tile.reshape((rows, TILE, hidden // TILE)).permute((0, 2, 1)), start)
    return result


def gather_sums(sums: Any, biases: Any, left: int, width: int, dtype: Any) -> Any:
    """Sums of some rows from their banks, plus biases, as one tile [rows, width]."""
    rows = sums[0].shape[0]
    tile = nl.ndarray((rows, width), dtype=dtype, buffer=nl.sbuf)
    for column in range(len(sums)):
        total = sums[column]
        part = tile[:, nl.ds(column * BANK, total.shape[1])]
        if is_given(biases):
            added = biases[0:rows, nl.ds(left + column * BANK, total.shape[1])]
            nisa.tensor_tensor(dst=part, data1=total, data2=added, op=nl.add)
        else:
            nisa.tensor_copy(dst=part, src=total)
    return tile

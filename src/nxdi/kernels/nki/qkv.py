"""Query, key and value projection in one product, with RMSNorm before and rotation after it.

The product is that of `matmul`; normalised rows are turned on chip, and heads are rotated before
they leave it, so neither costs memory traffic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import torch
from torch import Tensor

from nxdi.kernels.nki.matmul import multiply
from nxdi.kernels.nki.rope import declines_angles, load_angles, turn_heads, turned
from nxdi.kernels.nki.tiles import BANK, TILE, is_given, normalize, spread_row, turn

GROUP_ROWS = 256  # rows of x that share a pass over the weights
SUM_BANKS = 4  # of PSUM, half of which is being filled while the other is read


@dataclass(frozen=True)
class Call:
    """What a call of the kernel is decided on: x [T, H] and w [H, (num_q + 2 * num_kv) * D].

    rotary_dim: the columns of cos and sin, or 0 if heads are not turned.
    """

    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    dtype: torch.dtype
    num_q_heads: int
    num_kv_heads: int
    rotary_dim: int = 0


def supports(call: Call) -> str | None:
    """Why the kernel cannot serve a call, or None."""
    if len(call.x_shape) != 2 or len(call.w_shape) != 2 or call.x_shape[1] != call.w_shape[0]:
        return f"x {call.x_shape} and w {call.w_shape} are no [T, H] and [H, I]"
    hidden, columns = call.w_shape
    num_heads = call.num_q_heads + 2 * call.num_kv_heads
    if columns % num_heads or columns // num_heads > BANK:
        return f"{columns} columns are no {num_heads} heads of up to {BANK} elements"
    if call.rotary_dim:
        reason = declines_angles(call.rotary_dim, columns // num_heads)
        if reason is not None:
            return reason
    if hidden % TILE:
        return f"hidden size {hidden} is no multiple of {TILE}"
    if call.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"dtype {call.dtype} is no float of 16 or 32 bits"
    # A group of turned rows; two tiles of rows, of normalised ones and of squares; gamma.
    size = hidden * (GROUP_ROWS // TILE + 7) * call.dtype.itemsize
    return None if size <= 144 * 1024 else f"{hidden} columns of x do not fit SBUF"


def reference(  # noqa: PLR0913  # the kernel's signature
    x: Tensor,
    w: Tensor,
    num_q_heads: int,
    num_kv_heads: int,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """The same in torch, in float32 but for the normalised rows."""
    if gamma is not None:
        x = torch.rms_norm(x.float(), x.shape[-1:], gamma[0].float(), eps).to(x.dtype)
    result = x.float() @ w.float()
    if bias is not None:
        result = result + bias.float()
    heads: Tensor = result.unflatten(1, (num_q_heads + 2 * num_kv_heads, -1))
    if cos is not None and sin is not None:
        rotated = num_q_heads + num_kv_heads
        heads = torch.cat([turned(heads[:, :rotated], cos, sin), heads[:, rotated:]], dim=1)
    return heads.flatten(1).to(x.dtype)


@nki.jit
def qkv(  # noqa: PLR0913  # what one pass over the weights can do
    x: Any,
    w: Any,
    num_q_heads: int,
    num_kv_heads: int,
    bias: Any = None,
    gamma: Any = None,
    cos: Any = None,
    sin: Any = None,
    eps: float = 1e-6,
) -> Any:
    """x [T, H], w [H, I], bias [1, I], gamma [1, H], cos and sin [T, R] -> [T, I]."""
    num_rows, columns = x.shape[0], w.shape[1]
    head_dim = columns // (num_q_heads + 2 * num_kv_heads)
    rotated = (num_q_heads + num_kv_heads) * head_dim if is_given(cos) else 0
    out = nl.ndarray((num_rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    gains = spread_row(gamma, min(TILE, num_rows)) if is_given(gamma) else None
    biases = spread_row(bias, min(TILE, num_rows)) if is_given(bias) else None
    for first in range(0, num_rows, GROUP_ROWS):
        group = min(GROUP_ROWS, num_rows - first)
        rows = load_rows(x, gains, eps, first, group)
        angles = []
        for start in range(0, group, TILE):
            if is_given(cos):
                angles.append(load_angles(cos, sin, first + start, min(TILE, group - start)))
        # As many whole heads as there are banks for.
        step = SUM_BANKS // len(range(0, group, TILE)) * BANK // head_dim * head_dim
        for left in range(0, columns, step):
            width = min(step, columns - left)
            sums = multiply(rows, w, left, width)
            for row in range(len(sums)):
                tile = gather_sums(sums[row], biases, left, width, x.dtype)
                num_turned = max(0, min(left + width, rotated) - left) // head_dim
                if num_turned > 0:
                    heads = tile.reshape((tile.shape[0], width // head_dim, head_dim))
                    turn_heads(heads[:, nl.ds(0, num_turned), :], angles[row])
                place = out[nl.ds(first + row * TILE, tile.shape[0]), nl.ds(left, width)]
                nisa.dma_copy(dst=place, src=tile)
    return out


def load_rows(x: Any, gains: Any, eps: float, first: int, group: int) -> Any:
    """Rows of x, normalised if there are gains, with columns on partitions: [128, H / 128, T]."""
    hidden = x.shape[1]
    result = nl.ndarray((TILE, hidden // TILE, group), dtype=x.dtype, buffer=nl.sbuf)
    for start in range(0, group, TILE):
        rows = min(TILE, group - start)
        tile = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x[nl.ds(first + start, rows), :])
        if is_given(gains):
            tile = normalize(tile, gains[0:rows, :], eps)
        turn(result, tile.reshape((rows, hidden // TILE, TILE)), start)
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

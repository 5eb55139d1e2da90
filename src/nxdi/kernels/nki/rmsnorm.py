"""RMSNorm of rows: out[t, :] = x[t, :] * rsqrt(mean(x[t, :] ** 2) + eps) * gamma."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import torch
from torch import Tensor

BANK = 512  # float32 elements of a PSUM bank


@dataclass(frozen=True)
class Call:
    """What a call of the kernel is decided on."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    gamma_shape: tuple[int, ...]


def supports(call: Call) -> str | None:
    """Why the kernel cannot serve a call, or None."""
    if len(call.shape) != 2 or call.gamma_shape != (1, call.shape[1]):
        return (
            f"x has shape {call.shape}, gamma {call.gamma_shape}; the kernel takes [T, H], [1, H]"
        )
    if call.shape[1] % BANK and call.shape[1] > BANK:
        return f"hidden size {call.shape[1]} is above {BANK} and no multiple of it"
    if call.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"dtype {call.dtype} is no float of 16 or 32 bits"
    # Two rows of input and output, one of float32 squares and one of gamma fit a partition.
    size = call.shape[1] * (8 + 4 * call.dtype.itemsize)
    return None if size <= 160 * 1024 else f"a row of {call.shape[1]} elements does not fit SBUF"


def reference(x: Tensor, gamma: Tensor, eps: float = 1e-6) -> Tensor:
    """The same in torch, in float32."""
    return torch.rms_norm(x.float(), x.shape[-1:], gamma[0].float(), eps).to(x.dtype)


@nki.jit
def rmsnorm(x: Any, gamma: Any, eps: float = 1e-6) -> Any:
    """x [T, H] and gamma [1, H] in memory -> [T, H], in tiles of 128 rows."""
    num_rows, hidden = x.shape
    tile_rows = nl.tile_size.pmax
    width = min(BANK, hidden)
    out = nl.ndarray((num_rows, hidden), dtype=x.dtype, buffer=nl.shared_hbm)

    # gamma for every partition: a product of a row of ones with it, a bank at a time.
    gamma_row = nl.ndarray((1, hidden), dtype=gamma.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=gamma_row, src=gamma)
    ones = nl.ndarray((1, tile_rows), dtype=gamma.dtype, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)
    gamma_all = nl.ndarray((tile_rows, hidden), dtype=nl.float32, buffer=nl.sbuf)
    for h in range(hidden // width):
        columns = nl.ds(h * width, width)
        product = nl.ndarray((tile_rows, width), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(
            dst=product, stationary=ones, moving=gamma_row[:, columns], is_stationary_onezero=True
        )
        nisa.tensor_copy(dst=gamma_all[:, columns], src=product)

    # gen2 takes a bias as a column only.
    eps_column = nl.ndarray((tile_rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=eps_column, value=eps)

    for first in range(0, num_rows, tile_rows):
        rows = min(tile_rows, num_rows - first)
        tile = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x[nl.ds(first, rows), :])
        squares = nl.ndarray((rows, hidden), dtype=nl.float32, buffer=nl.sbuf)
        total = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(
            dst=squares,
            op=nl.square,
            data=tile,
            reduce_op=nl.add,
            reduce_res=total,
            reduce_cmd=nisa.reduce_cmd.reset_reduce,
        )
        scale = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(
            dst=scale, op=nl.rsqrt, data=total, scale=1.0 / hidden, bias=eps_column[0:rows, :]
        )
        result = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.scalar_tensor_tensor(
            dst=result,
            data=tile,
            op0=nl.multiply,
            operand0=scale,
            op1=nl.multiply,
            operand1=gamma_all[0:rows, :],
        )
        nisa.dma_copy(dst=out[nl.ds(first, rows), :], src=result)
    return out

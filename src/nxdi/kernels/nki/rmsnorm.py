"""RMSNorm of rows: out[t, :] = x[t, :] * rsqrt(mean(x[t, :] ** 2) + eps) * gamma."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import torch
from torch import Tensor

from nxdi.kernels.nki.tiles import TILE, normalize, spread_row


@dataclass(frozen=True)
class Call:
    """What a call of the kernel is decided on: x [T, H] and gamma [1, H]."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    gamma_shape: tuple[int, ...]


def supports(call: Call) -> str | None:
    """Why the kernel cannot serve a call, or None."""
    reason = declined_shapes(call)
    if reason is not None:
        return reason
    if call.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"dtype {call.dtype} is no float of 16 or 32 bits"
    # Two rows of input and output, one of squares and one of gamma fit a partition.
    size = call.shape[1] * 6 * call.dtype.itemsize
    return None if size <= 160 * 1024 else f"a row of {call.shape[1]} elements does not fit SBUF"


def declined_shapes(call: Call) -> str | None:
    """Why no norm of rows has such operands, or None."""
    if len(call.shape) == 2 and call.gamma_shape == (1, call.shape[1]):
        return None
    return f"x has shape {call.shape}, gamma {call.gamma_shape}; the kernel takes [T, H], [1, H]"


def reference(x: Tensor, gamma: Tensor, eps: float = 1e-6) -> Tensor:
    """The same in torch, in float32."""
    return torch.rms_norm(x.float(), x.shape[-1:], gamma[0].float(), eps).to(x.dtype)


@nki.jit
def rmsnorm(x: Any, gamma: Any, eps: float = 1e-6) -> Any:
    """x [T, H] and gamma [1, H] in memory -> [T, H], in tiles of 128 rows."""
    num_rows, hidden = x.shape
    out = nl.ndarray((num_rows, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    gamma_all = spread_row(gamma, min(TILE, num_rows))
    for first in range(0, num_rows, TILE):
        rows = min(TILE, num_rows - first)
        tile = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x[nl.ds(first, rows), :])
        result = normalize(tile, gamma_all[0:rows, :], eps)
        nisa.dma_copy(dst=out[nl.ds(first, rows), :], src=result)
    return out

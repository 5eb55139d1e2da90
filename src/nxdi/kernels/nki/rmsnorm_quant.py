"""RMSNorm of rows, then each row in 8 bits with a scale of its own.

A row's scale is its largest magnitude over 240 (float8 e4m3 of NeuronCores) or 127 (int8). The
root mean square cancels in the 8-bit values: they are those of x * gamma, which vector and scalar
engine compute side by side.
"""

from __future__ import annotations

from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import torch
from torch import Tensor

from nxdi.kernels.nki.rmsnorm import Call, declined_shapes
from nxdi.kernels.nki.tiles import TILE, inverse_rms, spread_row

__all__ = ["Call", "reference", "rmsnorm_quant", "supports"]

FLOAT8_MAX = 240.0
INT8_MAX = 127.0
TINY = 1e-20  # the least magnitude that a row is scaled by, so that zeros stay zeros


def supports(call: Call) -> str | None:
    """Why the kernel cannot serve a call, or None."""
    reason = declined_shapes(call)
    if reason is not None:
        return reason
    if call.dtype not in (torch.float32, torch.bfloat16):
        return f"dtype {call.dtype} is neither bfloat16 nor float32"
    # Two rows of input and of 8-bit output; one of squares, of products and of gamma.
    size = call.shape[1] * (2 + 5 * call.dtype.itemsize)
    return None if size <= 160 * 1024 else f"a row of {call.shape[1]} elements does not fit SBUF"


def reference(
    x: Tensor, gamma: Tensor, eps: float = 1e-6, as_int8: bool = False
) -> tuple[Tensor, Tensor]:
    """The same in torch: values [T, H] and scales float32 [T, 1]. Only x * gamma is rounded."""
    product = (x * gamma).float()
    most = INT8_MAX if as_int8 else FLOAT8_MAX
    largest = product.abs().amax(dim=-1, keepdim=True).clamp(min=TINY)
    values = product * largest.reciprocal() * most
    mean_square = x.float().square().mean(dim=-1, keepdim=True)
    dtype = torch.int8 if as_int8 else torch.float8_e4m3fn
    rounded = (values.round() if as_int8 else values).to(dtype)
    return rounded, largest * torch.rsqrt(mean_square + eps) / most


@nki.jit
def rmsnorm_quant(x: Any, gamma: Any, eps: float = 1e-6, as_int8: bool = False) -> Any:
    """x [T, H] and gamma [1, H] in memory -> 8-bit [T, H] and scales float32 [T, 1]."""
    num_rows, hidden = x.shape
    dtype = nl.int8 if as_int8 else nl.float8_e4m3
    most = INT8_MAX if as_int8 else FLOAT8_MAX
    out = nl.ndarray((num_rows, hidden), dtype=dtype, buffer=nl.shared_hbm)
    scales = nl.ndarray((num_rows, 1), dtype=nl.float32, buffer=nl.shared_hbm)
    gamma_all = spread_row(gamma, min(TILE, num_rows))
    for first in range(0, num_rows, TILE):
        rows = min(TILE, num_rows - first)
        tile = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x[nl.ds(first, rows), :])
        product = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=product, data1=tile, data2=gamma_all[0:rows, :], op=nl.multiply)
        largest = largest_magnitude(product)
        values = quantize(product, largest, dtype, most)
        nisa.dma_copy(dst=out[nl.ds(first, rows), :], src=values)
        scale = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=scale,
            data=largest,
            op0=nl.multiply,
            operand0=inverse_rms(tile, eps),
            op1=nl.multiply,
            operand1=1.0 / most,
        )
        nisa.dma_copy(dst=scales[nl.ds(first, rows), :], src=scale)
    return out, scales


def largest_magnitude(tile: Any) -> Any:
    """Of each row, but not zero: float32 [rows, 1]."""
    largest = nl.ndarray((tile.shape[0], 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=largest, op=nl.abs_max, data=tile, axis=1)
    nisa.tensor_scalar(dst=largest, data=largest, op0=nl.maximum, operand0=TINY)
    return largest


def quantize(tile: Any, largest: Any, dtype: Any, most: float) -> Any:
    """tile * most / largest, in 8 bits."""
    factor = nl.ndarray(largest.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=factor, data=largest)
    values = nl.ndarray(tile.shape, dtype=dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=values,
        data=tile,
        op0=nl.multiply,
        operand0=factor,
        op1=nl.multiply,
        operand1=most,
    )
    return values

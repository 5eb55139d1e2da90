"""Gated MLP of many tokens: down(act(gate(x)) * up(x)), after an RMSNorm where there is a gamma.

Tokens go in blocks of up to 512, whose transposed rows stay in SBUF while all weights stream by.
Gate and up are computed transposed (weights stationary), so that their product is the stationary
operand of down as it is. Two cores take half of the tokens each.
"""

from __future__ import annotations

from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl

from nxdi.kernels.nki.gated_mlp import Call, declined, reference
from nxdi.kernels.nki.tiles import BANK, TILE, inverse_rms, is_given

__all__ = ["Call", "mlp_prefill", "reference", "supports"]

GROUP = 4  # tiles of weights per transfer
SBUF = 172 * 1024  # bytes per partition that every generation has


def supports(call: Call) -> str | None:
    """Why the kernel cannot serve a call, or None."""
    reason = declined(call)
    if reason:
        return reason
    hidden, intermediate = call.gate_shape
    block = block_rows(hidden)
    tiles = -(-intermediate // TILE)
    # Rows as they are, one of squares, and transposed; or transposed, with products and act(gate);
    # or products with the weights of down; with 8 KiB for weights and results on their way.
    turned, products = hidden // TILE * block * 2, tiles * block * 2
    loading = hidden * 2 * (block // TILE + (call.gamma_shape is not None)) + turned
    widening = turned + products + GROUP * block * 4
    narrowing = products + tiles * down_width(intermediate) * 2
    size = max(loading, widening, narrowing) + 8 * 1024
    if size <= SBUF:
        return None
    return f"{hidden} x {intermediate} needs {size} bytes per partition of SBUF, of {SBUF}"


def block_rows(hidden: int) -> int:
    """Tokens that share a pass over the weights."""
    if hidden <= 8704:
        return 4 * TILE
    return 2 * TILE if hidden <= 16384 else TILE


def down_width(intermediate: int) -> int:
    """Columns of down that are loaded at once: 2 KiB of each row, or half of it."""
    return 2 * BANK if intermediate <= 4096 else BANK


@nki.jit
def mlp_prefill(
    x: Any,
    gate_w: Any,
    up_w: Any,
    down_w: Any,
    gamma: Any = None,
    eps: float = 1e-6,
    activation: str = "silu",
) -> Any:
    """x [T, H], weights [H, I], [H, I], [I, H], gamma [1, H] in memory -> [T, H]."""
    num_rows, hidden = x.shape
    out = nl.ndarray((num_rows, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    act = activation_of(activation)
    has_norm = is_given(gamma)
    scales = load_columns(gamma) if has_norm else None
    share = -(-num_rows // nl.num_programs(0))
    start = nl.program_id(0) * share
    end = min(num_rows, start + share)
    for first in range(start, end, block_rows(hidden)):
        rows = min(block_rows(hidden), end - first)
        turned = load_turned(x, first, rows, has_norm, scales, eps)
        products = widen(turned, gate_w, up_w, act)
        narrow(out, products, down_w, first)
    return out


def activation_of(name: str) -> Any:
    if name == "silu":
        return nl.silu
    return nl.gelu if name == "gelu" else nl.gelu_apprx_tanh


def load_columns(gamma: Any) -> Any:
    """gamma with a number per partition for each tile of 128 elements: [128, H / 128]."""
    num_tiles = gamma.shape[1] // TILE
    columns = nl.ndarray((TILE, num_tiles), dtype=nl.float32, buffer=nl.sbuf)
    for first in range(0, num_tiles, TILE):
        tiles = min(TILE, num_tiles - first)
        rows = nl.ndarray((tiles, TILE), dtype=gamma.dtype, buffer=nl.sbuf)
        part = gamma[:, nl.ds(first * TILE, tiles * TILE)]
        nisa.dma_copy(dst=rows, src=part.reshape((tiles, TILE)))
        turned = nl.ndarray((TILE, tiles), dtype=gamma.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=turned, data=rows, engine=nisa.engine.tensor)
        nisa.tensor_copy(dst=columns[:, nl.ds(first, tiles)], src=turned)
    return columns


def load_turned(x: Any, first: int, rows: int, has_norm: bool, scales: Any, eps: float) -> Any:
    """Rows of x, normalized, with their elements on the partitions: [128, H / 128, rows]."""
    hidden = x.shape[1]
    tiles = []
    for start in range(0, rows, TILE):
        tile = nl.ndarray((min(TILE, rows - start), hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x[nl.ds(first + start, tile.shape[0]), :])
        if has_norm:
            scale = inverse_rms(tile, eps)
            nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=scale)
        tiles.append(tile)
    turned = nl.ndarray((TILE, hidden // TILE, rows), dtype=x.dtype, buffer=nl.sbuf)
    for k in range(hidden // TILE):
        block = nl.ndarray((TILE, rows), dtype=x.dtype, buffer=nl.psum)
        for t in range(len(tiles)):
            source = tiles[t][:, nl.ds(k * TILE, TILE)]
            target = block[:, nl.ds(t * TILE, source.shape[0])]
            nisa.nc_transpose(dst=target, data=source, engine=nisa.engine.tensor)
        if has_norm:
            column = scales[:, nl.ds(k, 1)]
            nisa.tensor_scalar(dst=turned[:, k, :], data=block, op0=nl.multiply, operand0=column)
        else:
            nisa.tensor_copy(dst=turned[:, k, :], src=block)
    return turned


def widen(turned: Any, gate_w: Any, up_w: Any, act: Any) -> Any:
    """act(gate) * up with intermediate elements on the partitions: [128, I / 128, rows]."""
    rows, columns = turned.shape[2], gate_w.shape[1]
    tiles = -(-columns // TILE)
    products = nl.ndarray((TILE, tiles, rows), dtype=turned.dtype, buffer=nl.sbuf)
    # Columns that are summed at once: GROUP banks of gate, and as many of up.
    for left in range(0, columns, GROUP * TILE):
        width = min(GROUP * TILE, columns - left)
        gates = nl.ndarray((TILE, GROUP, rows), dtype=nl.float32, buffer=nl.sbuf)
        sums = multiply(turned, gate_w, left, width)
        for i in range(len(sums)):
            gate = gates[0 : sums[i].shape[0], i, :]
            nisa.activation(dst=gate, op=act, data=sums[i])
        sums = multiply(turned, up_w, left, width)
        for i in range(len(sums)):
            size = sums[i].shape[0]
            nisa.tensor_tensor(
                dst=products[0:size, left // TILE + i, :],
                data1=gates[0:size, i, :],
                data2=sums[i],
                op=nl.multiply,
            )
    return products


def multiply(turned: Any, w: Any, left: int, width: int) -> Any:
    """Sums over H in PSUM for `width` columns of w: tiles of [128 columns, rows]."""
    num_tiles, rows = turned.shape[1], turned.shape[2]
    sums = []
    for at in range(0, width, TILE):
        shape = (min(TILE, width - at), rows)
        sums.append(nl.ndarray(shape, dtype=nl.float32, buffer=nl.psum))
    for first in range(0, num_tiles, GROUP):
        weights = load_rows(w, first, min(GROUP, num_tiles - first), left, width)
        for k in range(weights.shape[1]):
            for i in range(len(sums)):
                nisa.nc_matmul(
                    dst=sums[i],
                    stationary=weights[:, k, nl.ds(i * TILE, sums[i].shape[0])],
                    moving=turned[:, first + k, :],
                )
    return sums


def load_rows(w: Any, first: int, tiles: int, left: int, width: int) -> Any:
    """`tiles` x 128 rows of w and some of its columns: [128, tiles, width]."""
    weights = nl.ndarray((TILE, tiles, width), dtype=w.dtype, buffer=nl.sbuf)
    part = w[nl.ds(first * TILE, tiles * TILE), nl.ds(left, width)]
    nisa.dma_copy(dst=weights, src=part.reshape_dim(0, (tiles, TILE)).permute((1, 0, 2)))
    return weights


def narrow(out: Any, products: Any, down_w: Any, first: int) -> None:
    """Rows of `out` from `first` on: the products times down."""
    hidden = down_w.shape[1]
    step = down_width(down_w.shape[0])
    for left in range(0, hidden, step):
        width = min(step, hidden - left)
        weights = load_down(down_w, left, width)
        for start in range(0, products.shape[2], TILE):
            rows = min(TILE, products.shape[2] - start)
            tile = nl.ndarray((rows, width), dtype=out.dtype, buffer=nl.sbuf)
            for at in range(0, width, BANK):
                part = nl.ds(at, min(BANK, width - at))
                shape = (rows, min(BANK, width - at))
                total = nl.ndarray(shape, dtype=nl.float32, buffer=nl.psum)
                for i in range(len(weights)):
                    size = weights[i].shape[0]
                    nisa.nc_matmul(
                        dst=total,
                        stationary=products[0:size, i, nl.ds(start, rows)],
                        moving=weights[i][:, part],
                    )
                nisa.tensor_copy(dst=tile[:, part], src=total)
            nisa.dma_copy(dst=out[nl.ds(first + start, rows), nl.ds(left, width)], src=tile)


def load_down(w: Any, left: int, width: int) -> Any:
    """Some columns of all rows of w, in tiles of up to 128 rows."""
    weights = []
    for top in range(0, w.shape[0], TILE):
        tile = nl.ndarray((min(TILE, w.shape[0] - top), width), dtype=w.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=w[nl.ds(top, tile.shape[0]), nl.ds(left, width)])
        weights.append(tile)
    return weights

"""Gated MLP of up to 128 tokens: down(act(gate(x)) * up(x)), after an RMSNorm for a gamma.

Weights stream from memory once, as the moving operand; the tokens are stationary. Partition p has
elements p * H / 128 to (p + 1) * H / 128 of the hidden size, so that x and gamma need no transpose
and neighbouring rows of gate and up are one run of memory.

Of two cores, each multiplies half of the rows of gate and up, whose sums they exchange, and then
half of the columns of down.
"""

from __future__ import annotations

from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl

from nxdi.kernels.nki.gated_mlp import Call, declined, reference
from nxdi.kernels.nki.mlp_prefill import activation_of
from nxdi.kernels.nki.tiles import BANK, TILE, is_given

__all__ = ["Call", "mlp_decode", "reference", "supports"]

CHUNK = 4 * BANK  # columns that are summed at once: half of PSUM
TRANSFER = 8 * 1024  # bytes per partition of a transfer of weights, at least a row of a chunk


def supports(call: Call) -> str | None:
    """Why the kernel cannot serve a call, or None."""
    reason = declined(call)
    if reason:
        return reason
    rows, hidden = call.x_shape
    if rows > TILE:
        return f"{rows} tokens are more than {TILE}; the prefill kernel takes them"
    if hidden < TILE * call.num_cores:
        return f"{hidden} elements are too few for {call.num_cores} cores"
    if rows * hidden > 1024 * 1024:
        return f"{rows} tokens of {hidden} elements do not fit SBUF"
    intermediate = call.gate_shape[1]
    return None if intermediate <= 16384 else f"{intermediate} products do not fit SBUF"


@nki.jit
def mlp_decode(
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
    intermediate = gate_w.shape[1]
    out = nl.ndarray((num_rows, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    # Tiles of H: rows of gate and up, and columns of down, of this core.
    share = -(-(hidden // TILE) // nl.num_programs(0))
    first = nl.program_id(0) * share
    tiles = min(share, hidden // TILE - first)
    turned = load_normalized(x, gamma, eps) if is_given(gamma) else load_turned(x)
    act = activation_of(activation)
    products = nl.ndarray((num_rows, intermediate), dtype=x.dtype, buffer=nl.sbuf)
    for left in range(0, intermediate, CHUNK):
        width = min(CHUNK, intermediate - left)
        gate = nl.ndarray((num_rows, width), dtype=nl.float32, buffer=nl.psum)
        up = nl.ndarray((num_rows, width), dtype=nl.float32, buffer=nl.psum)
        step = max(1, TRANSFER // (2 * width))
        for k in range(first, first + tiles, step):
            size = min(step, first + tiles - k)
            add_products(gate, turned, gate_w, k, size, left)
            add_products(up, turned, up_w, k, size, left)
        if nl.num_programs(0) == 2:
            gate, up = exchange(gate, up)
        combine(products[:, nl.ds(left, width)], gate, up, act)
    narrow(out, turn(products), down_w, first * TILE, tiles * TILE)
    return out


def load_turned(x: Any) -> Any:
    """x with its elements on the partitions: [128, H / 128, T]."""
    spread = load_spread(x)
    turned = nl.ndarray((TILE, spread.shape[2], x.shape[0]), dtype=x.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=turned, src=spread.permute((0, 2, 1)))
    return turned


def load_spread(x: Any) -> Any:
    """The elements of each row of x over the partitions: [128, rows, H / 128]."""
    num_rows, hidden = x.shape
    spread = nl.ndarray((TILE, num_rows, hidden // TILE), dtype=x.dtype, buffer=nl.sbuf)
    parts = x.reshape_dim(1, (TILE, hidden // TILE))
    nisa.dma_copy(dst=spread, src=parts.permute((1, 0, 2)))
    return spread


def load_normalized(x: Any, gamma: Any, eps: float) -> Any:
    """RMSNorm of x with its elements on the partitions: [128, H / 128, T]."""
    spread, scales = load_spread(x), load_spread(gamma)
    num_rows, num_tiles = spread.shape[1], spread.shape[2]
    scale = root_mean_square(spread, x.shape[1], eps)
    everywhere = scale.expand_dim(2).broadcast(2, num_tiles)
    nisa.tensor_tensor(dst=spread, data1=spread, data2=everywhere, op=nl.multiply)
    turned = nl.ndarray((TILE, num_tiles, num_rows), dtype=x.dtype, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=turned,
        data1=spread.permute((0, 2, 1)),
        data2=scales.permute((0, 2, 1)).broadcast(2, num_rows),
        op=nl.multiply,
    )
    return turned


def root_mean_square(spread: Any, hidden: int, eps: float) -> Any:
    """1 / sqrt(mean(x ** 2) + eps) of each row, on all partitions: [128, rows]."""
    squares = nl.ndarray(spread.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=squares, op=nl.square, data=spread)
    parts = nl.ndarray((TILE, spread.shape[1]), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=parts, op=nl.add, data=squares, axis=2)
    # A product with ones adds over the partitions, and gives each of them the sum.
    ones = nl.ndarray((TILE, TILE), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)
    total = nl.ndarray((TILE, spread.shape[1]), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=total, stationary=ones, moving=parts, is_stationary_onezero=True)
    # gen2 takes a bias as a column only.
    bias = nl.ndarray((TILE, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=bias, value=eps)
    nisa.activation(dst=parts, op=nl.rsqrt, data=total, scale=1.0 / hidden, bias=bias)
    return parts


def add_products(sums: Any, turned: Any, w: Any, k: int, size: int, left: int) -> None:
    """Add x times `size` rows of w on every partition, from the k-th on, to `sums` [T, width]."""
    width = sums.shape[1]
    weights = nl.ndarray((TILE, size, width), dtype=w.dtype, buffer=nl.sbuf)
    rows = w.reshape_dim(0, (TILE, turned.shape[1]))
    nisa.dma_copy(dst=weights, src=rows[:, nl.ds(k, size), nl.ds(left, width)])
    for at in range(size):
        for column in range(0, width, BANK):
            part = nl.ds(column, min(BANK, width - column))
            nisa.nc_matmul(
                dst=sums[:, part], stationary=turned[:, k + at, :], moving=weights[:, at, part]
            )


def exchange(gate: Any, up: Any) -> Any:
    """Sums of both cores from what each has in PSUM."""
    rows, width = gate.shape
    own = nl.ndarray((rows, 2, width), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=own[:, 0, :], src=gate)
    nisa.tensor_copy(dst=own[:, 1, :], src=up)
    others = nl.ndarray((rows, 2, width), dtype=nl.float32, buffer=nl.sbuf)
    other = 1 - nl.program_id(0)
    nisa.sendrecv(src=own, dst=others, send_to_rank=other, recv_from_rank=other, pipe_id=0)
    nisa.tensor_tensor(dst=own, data1=own, data2=others, op=nl.add)
    return own[:, 0, :], own[:, 1, :]


def combine(products: Any, gate: Any, up: Any, act: Any) -> None:
    """act(gate) * up, a bank at a time so that engines alternate."""
    rows, width = gate.shape
    for column in range(0, width, BANK):
        part = nl.ds(column, min(BANK, width - column))
        gated = nl.ndarray((rows, min(BANK, width - column)), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=gated, op=act, data=gate[:, part])
        nisa.tensor_tensor(dst=products[:, part], data1=gated, data2=up[:, part], op=nl.multiply)


def turn(products: Any) -> Any:
    """Products with their elements on the partitions: [128, I / 128, T]."""
    rows, intermediate = products.shape
    num_tiles = -(-intermediate // TILE)
    turned = nl.ndarray((TILE, num_tiles, rows), dtype=products.dtype, buffer=nl.sbuf)
    for i in range(num_tiles):
        size = min(TILE, intermediate - i * TILE)
        block = nl.ndarray((size, rows), dtype=products.dtype, buffer=nl.psum)
        source = products[:, nl.ds(i * TILE, size)]
        nisa.nc_transpose(dst=block, data=source, engine=nisa.engine.tensor)
        nisa.tensor_copy(dst=turned[0:size, i, :], src=block)
    return turned


def narrow(out: Any, products: Any, down_w: Any, start: int, columns: int) -> None:
    """Columns of `out` from `start` on: the products times down."""
    intermediate, rows = down_w.shape[0], products.shape[2]
    for left in range(start, start + columns, CHUNK):
        width = min(CHUNK, start + columns - left)
        sums = nl.ndarray((rows, width), dtype=nl.float32, buffer=nl.psum)
        for i in range(products.shape[1]):
            size = min(TILE, intermediate - i * TILE)
            weights = nl.ndarray((size, width), dtype=down_w.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=weights, src=down_w[nl.ds(i * TILE, size), nl.ds(left, width)])
            for column in range(0, width, BANK):
                part = nl.ds(column, min(BANK, width - column))
                nisa.nc_matmul(
                    dst=sums[:, part], stationary=products[0:size, i, :], moving=weights[:, part]
                )
        tile = nl.ndarray((rows, width), dtype=out.dtype, buffer=nl.sbuf)
        for column in range(0, width, BANK):
            part = nl.ds(column, min(BANK, width - column))
            nisa.tensor_copy(dst=tile[:, part], src=sums[:, part])
        nisa.dma_copy(dst=out[:, nl.ds(left, width)], src=tile)

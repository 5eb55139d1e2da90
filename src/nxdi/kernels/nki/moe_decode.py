"""The chosen experts of a few tokens: down(silu(gate(x)) * up(x)), weighted and summed.

Decode reads weights and does little else, so all of a chosen expert's weights stream by in long
runs, as the stationary operand: 128 x 128 of them take 64 cycles with one column of activations.
A vector of N elements is held as [P, N / P], P being N's largest divisor up to 128. Of a hidden
vector, partition p holds the elements from p * N / P on, which are neighbours in memory; of what is
between the projections, column b holds a block of P.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import torch
import torch.nn.functional as F
from torch import Tensor

from nxdi.kernels.nki.tiles import TILE, spread_row

CHUNK = 36 * 1024  # bytes per partition of a load of weights; two of each projection are held
MAX_CHOICES = 256


@dataclass(frozen=True)
class Call:
    """What a call of the kernel is decided on.

    x [T, H], gate_up [E, H, 2 * I], down [E, I, H], experts [T, K].
    """

    x_shape: tuple[int, ...]
    gate_up_shape: tuple[int, ...]
    down_shape: tuple[int, ...]
    experts_shape: tuple[int, ...]
    dtype: torch.dtype


def supports(call: Call) -> str | None:
    """Why the kernel cannot serve a call, or None."""
    shapes = call.x_shape, call.gate_up_shape, call.down_shape, call.experts_shape
    if tuple(map(len, shapes)) != (2, 3, 3, 2):
        return f"shapes {shapes}; the kernel takes [T, H], [E, H, 2 I], [E, I, H] and [T, K]"
    num_tokens, hidden = call.x_shape
    num_experts, inner, _ = call.down_shape
    expected = (num_experts, hidden, 2 * inner), (num_experts, inner, hidden)
    if shapes[1:3] != expected or call.experts_shape[0] != num_tokens:
        return f"shapes {shapes} do not fit each other as [T, H], [E, H, 2 I], [E, I, H], [T, K]"
    if num_tokens * call.experts_shape[1] > MAX_CHOICES:
        return f"{call.experts_shape} choices, more than {MAX_CHOICES}; use all experts at once"
    for size in (hidden, inner):
        if size > TILE and split(size) < TILE // 2:
            return f"{size} has no divisor from {TILE // 2} to {TILE}; pad it"
    if call.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"dtype {call.dtype} is no float of 16 or 32 bits"
    row = max(2 * inner, hidden) * call.dtype.itemsize
    return None if row <= CHUNK else f"a row of weights of {row} bytes is above {CHUNK}"


def split(size: int) -> int:
    """Partitions for a vector: the largest divisor of its size up to 128."""
    best = 1
    for number in range(1, TILE + 1):
        if size % number == 0:
            best = number
    return best


def reference(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
    """The same in torch, in float32 but for what is between the projections."""
    chosen = experts.clamp(min=0).long()
    both = torch.einsum("th,tkhi->tki", x.float(), gate_up[chosen].float())
    gate, up = both.chunk(2, dim=-1)
    inner = (F.silu(gate) * up).to(x.dtype).float()
    outputs = torch.einsum("tki,tkih->tkh", inner, down[chosen].float())
    gains = weights * (experts >= 0)
    return (gains.unsqueeze(-1) * outputs).sum(dim=1).to(x.dtype)


@nki.jit
def moe_decode(x: Any, gate_up: Any, down: Any, weights: Any, experts: Any) -> Any:
    """x [T, H], gate_up [E, H, 2 I], down [E, I, H], weights float32 and experts int32 [T, K].

    Expert -1 is none. Returns: [T, H].
    """
    num_tokens, hidden = x.shape
    partitions, top_k = split(hidden), experts.shape[1]
    columns = hidden // partitions
    out = nl.ndarray((num_tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    tokens = nl.ndarray((partitions, num_tokens, columns), dtype=x.dtype, buffer=nl.sbuf)
    by_token = x.reshape((num_tokens, partitions, columns))
    nisa.dma_copy(dst=tokens, src=by_token.permute((1, 0, 2)))
    numbers, gains = load_choices(weights, experts, partitions)
    for token in range(num_tokens):
        total = nl.ndarray((partitions, columns), dtype=nl.float32, buffer=nl.sbuf)
        nisa.memset(dst=total, value=0.0)
        for at in range(token * top_k, (token + 1) * top_k):
            number, gain = numbers[:, nl.ds(at, 1)], gains[:, nl.ds(at, 1)]
            inner = project_up(tokens[:, token, :], gate_up, number)
            project_down(total, inner, down, number, gain)
        result = nl.ndarray((partitions, columns), dtype=x.dtype, buffer=nl.sbuf)
        nisa.tensor_copy(dst=result, src=total)
        place = out[nl.ds(token, 1), :].reshape((partitions, columns))
        nisa.dma_copy(dst=place, src=result)
    return out


def load_choices(weights: Any, experts: Any, partitions: int) -> Any:
    """Expert of each choice [1, T * K], and its weight in every partition; none is 0 with 0."""
    shape = (1, experts.shape[0] * experts.shape[1])
    numbers = nl.ndarray(shape, dtype=nl.int32, buffer=nl.sbuf)
    nisa.dma_copy(dst=numbers, src=experts.reshape(shape))
    nisa.tensor_scalar(dst=numbers, data=numbers, op0=nl.maximum, operand0=0)
    gains = spread_row(weights.reshape(shape), partitions)
    nisa.scalar_tensor_tensor(
        dst=gains,
        data=spread_row(experts.reshape(shape), partitions),
        op0=nl.greater_equal,
        operand0=0.0,
        op1=nl.multiply,
        operand1=gains,
    )
    return numbers, gains


def project_up(token: Any, gate_up: Any, number: Any) -> Any:
    """silu(gate) * up of one token [P, H / P] by one expert: [Q, I / Q]."""
    partitions, columns = token.shape
    width = gate_up.shape[2]
    rows = split(width // 2)
    blocks = width // rows
    sums = nl.ndarray((rows, blocks), dtype=nl.float32, buffer=nl.sbuf)
    step = even_step(columns, width * gate_up.dtype.itemsize)
    for first in range(0, columns, step):
        num = min(step, columns - first)
        loaded = nl.ndarray((partitions, num, width), dtype=gate_up.dtype, buffer=nl.sbuf)
        pattern = [[columns * width, partitions], [width, num], [1, width]]
        source = gate_up.ap(pattern=pattern, offset=first * width, scalar_offset=number)
        nisa.dma_copy(dst=loaded, src=source)
        part = nl.ndarray((rows, blocks), dtype=nl.float32, buffer=nl.psum)
        for block in range(blocks):
            for k in range(num):
                nisa.nc_matmul(
                    dst=part[:, nl.ds(block, 1)],
                    stationary=loaded[:, k, nl.ds(block * rows, rows)],
                    moving=token[:, nl.ds(first + k, 1)],
                    accumulate=k > 0,
                )
        if first == 0:
            nisa.tensor_copy(dst=sums, src=part)
        else:
            nisa.tensor_tensor(dst=sums, data1=part, data2=sums, op=nl.add)
    half = blocks // 2
    gate = nl.ndarray((rows, half), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=gate, op=nl.silu, data=sums[:, 0:half])
    inner = nl.ndarray((rows, half), dtype=token.dtype, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=inner, data1=gate, data2=sums[:, nl.ds(half, half)], op=nl.multiply)
    return inner


def project_down(total: Any, inner: Any, down: Any, number: Any, gain: Any) -> None:
    """total [P, H / P] += gain * inner [Q, I / Q] @ the expert's weights."""
    partitions, columns = total.shape
    rows, blocks = inner.shape
    hidden = partitions * columns
    step = even_step(blocks, hidden * down.dtype.itemsize)
    for first in range(0, blocks, step):
        num = min(step, blocks - first)
        loaded = nl.ndarray((rows, num, hidden), dtype=down.dtype, buffer=nl.sbuf)
        pattern = [[hidden, rows], [rows * hidden, num], [1, hidden]]
        source = down.ap(pattern=pattern, offset=first * rows * hidden, scalar_offset=number)
        nisa.dma_copy(dst=loaded, src=source)
        # Column h of the result goes to partition h // columns.
        by_column = loaded.reshape((rows, num, partitions, columns))
        part = nl.ndarray((partitions, columns), dtype=nl.float32, buffer=nl.psum)
        for column in range(columns):
            for k in range(num):
                nisa.nc_matmul(
                    dst=part[:, nl.ds(column, 1)],
                    stationary=by_column[:, k, :, column],
                    moving=inner[:, nl.ds(first + k, 1)],
                    accumulate=k > 0,
                )
        nisa.scalar_tensor_tensor(
            dst=total, data=part, op0=nl.multiply, operand0=gain, op1=nl.add, operand1=total
        )


def even_step(number: int, size: int) -> int:
    """How many pieces of `size` bytes to load at a time, so that loads are alike."""
    loads = -(-number * size // CHUNK)
    return -(-number // loads)

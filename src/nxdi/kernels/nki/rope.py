"""Rotary position embeddings of query and key heads: each head's halves turned by an angle.

Source: arXiv:2104.09864, with halves as in Llama. Tokens are on the partitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import torch
from torch import Tensor

from nxdi.kernels.nki.tiles import TILE


@dataclass(frozen=True)
class Call:
    """What a call of the kernel is decided on: q [T, Nq, D], k [T, Nk, D], cos and sin [T, R]."""

    q_shape: tuple[int, ...]
    k_shape: tuple[int, ...]
    angles_shape: tuple[int, ...]
    dtype: torch.dtype


def supports(call: Call) -> str | None:
    """Why the kernel cannot serve a call, or None."""
    shapes = call.q_shape, call.k_shape, call.angles_shape
    if tuple(map(len, shapes)) != (3, 3, 2) or len({shape[0] for shape in shapes}) != 1:
        return f"q, k and cos have shapes {shapes}; the kernel takes [T, Nq, D], [T, Nk, D], [T, R]"
    if call.q_shape[2] != call.k_shape[2]:
        return f"heads of q have {call.q_shape[2]} elements, those of k {call.k_shape[2]}"
    reason = declines_angles(call.angles_shape[1], call.q_shape[2])
    if reason is not None:
        return reason
    if call.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"dtype {call.dtype} is no float of 16 or 32 bits"
    # Heads as they came, with exchanged halves and their product; and those of the next tile.
    size = 4 * max(call.q_shape[1], call.k_shape[1]) * call.q_shape[2] * call.dtype.itemsize
    return None if size <= 128 * 1024 else f"{call.q_shape[1]} heads of a token do not fit SBUF"


def declines_angles(rotary_dim: int, head_dim: int) -> str | None:
    """Why so many elements of a head cannot be turned, or None."""
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        return f"{rotary_dim} elements of a head of {head_dim} cannot be turned in pairs"
    return None


def reference(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The same in torch, in float32."""
    return turned(q, cos, sin), turned(k, cos, sin)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, N, D], its first R elements turned by the angles of cos and sin [T, R]."""
    size = cos.shape[1]
    wide, rest = x[..., :size].float(), x[..., size:]
    low, high = wide.chunk(2, dim=-1)
    quarter_turn = torch.cat([-high, low], dim=-1)
    result = wide * cos.float().unsqueeze(1) + quarter_turn * sin.float().unsqueeze(1)
    return torch.cat([result.to(x.dtype), rest], dim=-1)


@nki.jit
def rope(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    """q [T, Nq, D], k [T, Nk, D], cos and sin [T, R] with halves repeated -> both turned."""
    q_out = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    k_out = nl.ndarray(k.shape, dtype=k.dtype, buffer=nl.shared_hbm)
    for first in range(0, q.shape[0], TILE):
        rows = min(TILE, q.shape[0] - first)
        angles = load_angles(cos, sin, first, rows)
        turn_rows(q_out, q, angles, first, rows)
        turn_rows(k_out, k, angles, first, rows)
    return q_out, k_out


def turn_rows(out: Any, x: Any, angles: Any, first: int, rows: int) -> None:
    """Turn the heads of some tokens."""
    tile = nl.ndarray((rows, x.shape[1], x.shape[2]), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x[nl.ds(first, rows), :, :])
    turn_heads(tile, angles)
    nisa.dma_copy(dst=out[nl.ds(first, rows), :, :], src=tile)


def load_angles(cos: Any, sin: Any, first: int, rows: int) -> Any:
    """cos, and sin with its first half negated, of some tokens: [rows, 2, R]."""
    size = cos.shape[1]
    angles = nl.ndarray((rows, 2, size), dtype=cos.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=angles[:, 0, :], src=cos[nl.ds(first, rows), :])
    nisa.dma_copy(dst=angles[:, 1, :], src=sin[nl.ds(first, rows), :])
    negated = angles[:, 1, nl.ds(0, size // 2)]
    nisa.tensor_scalar(dst=negated, data=negated, op0=nl.multiply, operand0=-1.0)
    return angles


def turn_heads(tile: Any, angles: Any) -> None:
    """Turn heads [rows, N, D] where they are, by `load_angles` of their tokens.

    The scalar engine exchanges halves for all heads at once; the vector engine takes a head at a
    time, as angles are shared by heads and its fast modes want dense operands.
    """
    rows, num_heads, size = tile.shape[0], tile.shape[1], angles.shape[2]
    half = size // 2
    other = nl.ndarray((rows, num_heads, size), dtype=tile.dtype, buffer=nl.sbuf)
    low, high = tile[:, :, nl.ds(0, half)], tile[:, :, nl.ds(half, half)]
    nisa.activation(dst=other[:, :, nl.ds(0, half)], op=nl.copy, data=high)
    nisa.activation(dst=other[:, :, nl.ds(half, half)], op=nl.copy, data=low)
    for n in range(num_heads):
        head = tile[:, n, nl.ds(0, size)]
        beside = other[:, n, :]
        nisa.tensor_tensor(dst=head, data1=head, data2=angles[:, 0, :], op=nl.multiply)
        nisa.tensor_tensor(dst=beside, data1=beside, data2=angles[:, 1, :], op=nl.multiply)
        nisa.tensor_tensor(dst=head, data1=head, data2=beside, op=nl.add)

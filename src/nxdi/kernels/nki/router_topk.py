"""Router of a mixture of experts: scores of all experts, and the best k with their weights.

Experts are chosen by their logits, which both score functions keep in order. Of equal logits the
first is chosen.
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

from nxdi.kernels.nki.tiles import BANK, TILE, load_turned

WAYS = 8  # values that the vector engine finds at once
LOWEST = -3.0e38  # below every logit
NO_WEIGHT = 1e-20  # keeps scores that are all zero from dividing by it


@dataclass(frozen=True)
class Call:
    """What a call of the kernel is decided on: x [T, H] and w [E, H]."""

    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    dtype: torch.dtype
    top_k: int
    act: str = "softmax"


def supports(call: Call) -> str | None:
    """Why the kernel cannot serve a call, or None."""
    if len(call.x_shape) != 2 or len(call.w_shape) != 2 or call.x_shape[1] != call.w_shape[1]:
        return f"x {call.x_shape} and w {call.w_shape} are no [T, H] and [E, H]"
    num_experts, hidden = call.w_shape
    if hidden % TILE:
        return f"hidden size {hidden} is no multiple of {TILE}"
    if num_experts > BANK:
        return f"{num_experts} experts, more than {BANK}"
    if not 0 < call.top_k <= min(WAYS, num_experts):
        return f"top_k={call.top_k} of {num_experts} experts; the kernel chooses up to {WAYS}"
    if call.act not in ("softmax", "sigmoid"):
        return f"scores by {call.act!r}; the kernel has 'softmax' and 'sigmoid'"
    if call.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"dtype {call.dtype} is no float of 16 or 32 bits"
    # All weights; two tiles of rows as they are and turned.
    size = (hidden // TILE * num_experts + 4 * hidden) * call.dtype.itemsize
    return None if size <= 144 * 1024 else f"{num_experts} x {hidden} weights do not fit SBUF"


def reference(
    x: Tensor, w: Tensor, top_k: int, act: str = "softmax", normalize: bool = True
) -> tuple[Tensor, Tensor]:
    """The same in torch, in float32: weights float32 and experts int32, both [T, top_k]."""
    logits = F.linear(x.float(), w.float())
    # A stable sort chooses the first of equals.
    experts = logits.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    scores = logits.softmax(dim=-1) if act == "softmax" else logits.sigmoid()
    weights = scores.gather(1, experts)
    if normalize:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + NO_WEIGHT)
    return weights, experts.int()


@nki.jit
def router_topk(x: Any, w: Any, top_k: int, act: str = "softmax", normalize: bool = True) -> Any:
    """x [T, H] and w [E, H] in memory -> weights float32 and experts int32, both [T, top_k]."""
    num_rows = x.shape[0]
    weights_out = nl.ndarray((num_rows, top_k), dtype=nl.float32, buffer=nl.shared_hbm)
    experts_out = nl.ndarray((num_rows, top_k), dtype=nl.int32, buffer=nl.shared_hbm)
    turned = load_turned(w, 0, w.shape[0])
    for first in range(0, num_rows, TILE):
        rows = min(TILE, num_rows - first)
        logits = score(load_turned(x, first, rows), turned)
        best = nl.ndarray((rows, WAYS), dtype=nl.float32, buffer=nl.sbuf)
        nisa.max8(dst=best, src=logits)
        places = nl.ndarray((rows, WAYS), dtype=nl.uint32, buffer=nl.sbuf)
        nisa.nc_find_index8(dst=places, data=logits, vals=best)
        experts = nl.ndarray((rows, top_k), dtype=nl.int32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=experts, src=places[:, 0:top_k])
        if act == "softmax":
            weights = softmax(best, logits, top_k, normalize)
        else:
            weights = sigmoid(best, top_k, normalize)
        nisa.dma_copy(dst=weights_out[nl.ds(first, rows), :], src=weights)
        nisa.dma_copy(dst=experts_out[nl.ds(first, rows), :], src=experts)
    return weights_out, experts_out


def score(rows_turned: Any, weights: Any) -> Any:
    """Logits float32 [rows, E], in a tile of at least 8 columns."""
    rows, num_experts = rows_turned.shape[2], weights.shape[2]
    total = nl.ndarray((rows, num_experts), dtype=nl.float32, buffer=nl.psum)
    for k in range(rows_turned.shape[1]):
        nisa.nc_matmul(
            dst=total, stationary=rows_turned[:, k, :], moving=weights[:, k, :], accumulate=k > 0
        )
    logits = nl.ndarray((rows, max(WAYS, num_experts)), dtype=nl.float32, buffer=nl.sbuf)
    if num_experts < WAYS:
        nisa.memset(dst=logits, value=LOWEST)
    nisa.tensor_copy(dst=logits[:, 0:num_experts], src=total)
    return logits


def softmax(best: Any, logits: Any, top_k: int, normalize: bool) -> Any:
    """Shares of the best in the sum over themselves (`normalize`) or over all experts."""
    rows = best.shape[0]
    shift = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=shift, data=best[:, 0:1], op0=nl.multiply, operand0=-1.0)
    scores = nl.ndarray((rows, top_k), dtype=nl.float32, buffer=nl.sbuf)
    total = apply(scores, nl.exp, best[:, 0:top_k], shift)
    if not normalize:
        every = nl.ndarray(logits.shape, dtype=nl.float32, buffer=nl.sbuf)
        total = apply(every, nl.exp, logits, shift)
    divide(scores, total)
    return scores


def sigmoid(best: Any, top_k: int, normalize: bool) -> Any:
    """Scores of the best, or their shares in the sum of them."""
    rows = best.shape[0]
    shift = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=shift, value=0.0)
    scores = nl.ndarray((rows, top_k), dtype=nl.float32, buffer=nl.sbuf)
    total = apply(scores, nl.sigmoid, best[:, 0:top_k], shift)
    if normalize:
        divide(scores, total)
    return scores


def apply(dst: Any, op: Any, data: Any, shift: Any) -> Any:
    """dst = op(data + shift), and its sum over each row [rows, 1]."""
    total = nl.ndarray((dst.shape[0], 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(
        dst=dst,
        op=op,
        data=data,
        bias=shift,
        reduce_op=nl.add,
        reduce_res=total,
        reduce_cmd=nisa.reduce_cmd.reset_reduce,
    )
    return total


def divide(scores: Any, total: Any) -> None:
    """scores / total, in place."""
    share = nl.ndarray(total.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=share, data=total, op0=nl.add, operand0=NO_WEIGHT)
    nisa.reciprocal(dst=share, data=share)
    nisa.tensor_scalar(dst=scores, data=scores, op0=nl.multiply, operand0=share)

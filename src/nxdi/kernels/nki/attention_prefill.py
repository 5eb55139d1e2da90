"""Causal attention of a prompt's tokens, with grouped heads, a sliding window, sinks or a prefix.

Rows of scores lie on partitions: 128 queries to 1024 keys at a time, with a running maximum and sum
(arXiv:2205.14135). Engines run in program order, so the four steps of a span (scores, exponentials,
transposed weights, weighted values) are spread over four turns, and no engine waits for another.
"""

from __future__ import annotations

from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import torch
from torch import Tensor

from nxdi.kernels.masks import Causal, SlidingWindow
from nxdi.kernels.nki.copies import copy_out
from nxdi.kernels.nki.tiles import is_given
from nxdi.kernels.ops import AttendCall
from nxdi.kernels.reference.attend import attend_wide

TILE = 128  # partitions: queries of a tile, keys of a block
BANK = 512  # float32 elements of a PSUM bank
SPAN = 1024  # keys of a span: two banks of scores
HIDDEN = -1e30  # added to scores that a query may not see


def supports(call: AttendCall) -> str | None:
    """Why the kernel cannot serve a call, or None."""
    if not call.aligned or call.num_queries > call.num_keys:
        return "the queries are not the tokens of the last keys"
    if not isinstance(call.mask, (Causal, SlidingWindow)):
        return f"mask {call.mask} is neither causal nor a sliding window"
    if call.softcap is not None:
        return "soft-capped scores"
    if call.head_dim > TILE or call.head_dim != call.value_dim:
        return f"keys of {call.head_dim} and values of {call.value_dim} numbers, not one size <=128"
    if call.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"dtype {call.dtype} is no float of 16 or 32 bits"
    # Per key: its column of the transposed keys, and its share of a row of values.
    spans = -(-call.num_keys // SPAN)
    size = spans * (SPAN + SPAN // TILE * call.head_dim) * call.dtype.itemsize
    return None if size <= 136 * 1024 else f"{call.num_keys} keys do not fit SBUF"


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None = None,
    scale: float = 1.0,
    window: int = 0,
) -> Tensor:
    """The same in torch, in float32.

    q [B, N, G, S, D], the queries of the last keys; k, v [B, N, L, D]; sinks [N, G]; window: how
    many tokens a query sees, 0 for all -> [B, N, G, S, D].
    """
    num_queries, num_keys = q.shape[3], k.shape[2]
    key = torch.arange(num_keys, device=q.device)
    own = key[num_keys - num_queries :, None]
    allowed = (key <= own) & (key > own - (window or num_keys))
    return attend_wide(q, k, v, allowed[None], sinks, scale)


@nki.jit
def attention_prefill(
    q: Any, k: Any, v: Any, sinks: Any = None, scale: float = 1.0, window: int = 0
) -> Any:
    """See `reference`; all tensors are in memory."""
    batch, num_heads, group, num_queries, _ = q.shape
    out = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    masks = [make_mask(TILE, 0)]
    if window > 0:
        masks = [masks[0], make_mask(2 * TILE, 1 - TILE), window]
    for b in range(batch):
        for n in range(num_heads):
            spans = plan_spans(group, num_queries, k.shape[2], window)
            attend_heads(out, (q, k, v, sinks), (b, n), spans, masks, scale)
    return out


def plan_spans(group: int, num_queries: int, num_keys: int, window: int) -> Any:
    """What is computed, in order: (head, first query, queries, key of query 0, first key, end).

    Keys begin at a block, and lie in one part of SPAN keys.
    """
    spans = []
    past = num_keys - num_queries
    for g in range(group):
        for first in range(0, num_queries, TILE):
            rows = min(TILE, num_queries - first)
            own = past + first
            start = max(0, own - window + 1) if window > 0 else 0
            start = start // TILE * TILE
            while start < own + rows:
                end = min(own + rows, start // SPAN * SPAN + SPAN)
                spans.append((g, first, rows, own, start, end))
                start = end
    return spans


def attend_heads(out: Any, tensors: Any, head: Any, spans: Any, masks: Any, scale: float) -> None:
    """All queries of one key/value head, four spans in flight."""
    keys: list[Any] = []
    values, flights, tiles = [], [], []
    for at in range(len(spans) + 3):
        if at < len(spans):
            g, first, rows, _, start, end = spans[at]
            while len(keys) * SPAN < end:
                turned, rows_of_values = load_span(tensors, head, len(keys) * SPAN)
                keys.append(turned)
                values.append(rows_of_values)
            is_first = at == 0 or spans[at - 1][0:2] != (g, first)
            if is_first:
                tiles.append(load_queries(tensors, head, g, first, rows))
            flights.append(score(tiles[-1], keys[start // SPAN], spans[at], masks, scale))
        if at >= 1 and at - 1 < len(spans):
            exponentials(flights[at - 1], scale)
        if at >= 2 and at - 2 < len(spans):
            turn_weights(flights[at - 2], at)
        if at >= 3:
            g, first, rows, _, start, _ = spans[at - 3]
            weigh(flights[at - 3], values[start // SPAN], start % SPAN)
            if at - 2 == len(spans) or spans[at - 2][0:2] != (g, first):
                b, n = head
                store(out[b, n, g, nl.ds(first, rows), :], flights[at - 3]["tile"])
            flights[at - 3] = {}


def make_mask(width: int, offset: int) -> Any:
    """What is added to scores at an edge of what queries see, [query, key].

    offset 0: column x is hidden from queries before x, as by causality. Else it is hidden from
    queries after x + offset, as before a window.
    """
    zeros = nl.ndarray((TILE, width), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=zeros, value=0.0)
    mask = nl.ndarray((TILE, width), dtype=nl.float32, buffer=nl.sbuf)
    sign = 1 if offset == 0 else -1
    nisa.affine_select(
        dst=mask,
        pattern=[[-sign, width]],
        channel_multiplier=sign,
        on_true_tile=zeros,
        on_false_value=HIDDEN,
        cmp_op=nl.greater_equal,
        offset=offset,
    )
    return mask


def load_span(tensors: Any, head: Any, first: int) -> Any:
    """A part of the keys, transposed [size, SPAN], and of the values [128, 8, size]."""
    b, n = head
    _, k, v, _ = tensors
    size, count = k.shape[3], min(SPAN, k.shape[2] - first)
    rows = load_rows(k[b, n, nl.ds(first, count), :])
    turned = nl.ndarray((size, count), dtype=k.dtype, buffer=nl.sbuf)
    half = BANK if k.dtype == nl.float32 else 2 * BANK  # a bank of PSUM
    for start in range(0, count, half):
        width = min(half, count - start)
        block = nl.ndarray((size, width), dtype=k.dtype, buffer=nl.psum)
        for at in range(start, start + width, TILE):
            part = min(TILE, count - at)
            columns = nl.ds(at - start, part)
            source = rows[0:part, at // TILE, :]
            nisa.nc_transpose(dst=block[:, columns], data=source, engine=nisa.engine.tensor)
        copy_out(turned[:, nl.ds(start, width)], block, True)
    return turned, load_rows(v[b, n, nl.ds(first, count), :])


def load_rows(source: Any) -> Any:
    """Rows of a matrix in blocks of 128: [count, size] -> [128, blocks, size]."""
    count, size = source.shape
    whole = count // TILE
    tile = nl.ndarray((TILE, -(-count // TILE), size), dtype=source.dtype, buffer=nl.sbuf)
    if whole > 0:
        blocks = source[0 : whole * TILE, :].reshape_dim(0, (whole, TILE))
        nisa.dma_copy(dst=tile[:, 0:whole, :], src=blocks.permute((1, 0, 2)))
    if count > whole * TILE:
        rest = source[whole * TILE : count, :]
        nisa.dma_copy(dst=tile[0 : count - whole * TILE, whole, :], src=rest)
    return tile


def load_queries(tensors: Any, head: Any, g: int, first: int, rows: int) -> Any:
    """A tile of queries, transposed, and what is known of them: see `score` and `weigh`.

    low: -scale times the maximum of the scores. total, sums: of weights, and of weighted values.
    """
    b, n = head
    q, _, _, sinks = tensors
    size = q.shape[4]
    tile = nl.ndarray((rows, size), dtype=q.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=q[b, n, g, nl.ds(first, rows), :])
    block = nl.ndarray((size, rows), dtype=q.dtype, buffer=nl.psum)
    nisa.nc_transpose(dst=block, data=tile, engine=nisa.engine.tensor)
    turned = nl.ndarray((size, rows), dtype=q.dtype, buffer=nl.sbuf)
    copy_out(turned, block, True)
    if not is_given(sinks):
        return {"queries": turned}
    # A sink is a score that is there before all others, whose value is zero.
    sink = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    column = sinks.ap(pattern=[[0, rows], [1, 1]], offset=n * sinks.shape[1] + g)
    nisa.dma_copy(dst=sink, src=column)
    low = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=low, data=sink, op0=nl.multiply, operand0=-1.0)
    total = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=total, value=1.0)
    return {"queries": turned, "low": low, "total": total}


def score(tile: Any, keys: Any, span: Any, masks: Any, scale: float) -> Any:
    """Begin a span: its masked scores, in PSUM, and the low of its queries from now on."""
    _, _, rows, own, start, end = span
    width = end - start
    scores = nl.ndarray((rows, width), dtype=nl.float32, buffer=nl.psum)
    for at in range(0, width, BANK):
        part = min(BANK, width - at)
        columns = nl.ds(start % SPAN + at, part)
        place = scores[:, nl.ds(at, part)]
        nisa.nc_matmul(dst=place, stationary=tile["queries"], moving=keys[:, columns])
    hide_later(scores, masks[0], own, start, end)
    if len(masks) > 2:
        hide_earlier(scores, masks[1], own - masks[2] + 1, start, end)
    highest = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=highest, op=nl.maximum, data=scores, axis=1, negate=True)
    low = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=low, data=highest, op0=nl.multiply, operand0=scale)
    flight = {"tile": tile, "scores": scores, "low": low}
    if "low" in tile:
        nisa.tensor_scalar(dst=low, data=low, op0=nl.minimum, operand0=tile["low"])
        flight["old"] = tile["low"]
    tile["low"] = low
    return flight


def hide_later(scores: Any, mask: Any, own: int, start: int, end: int) -> None:
    """Hide what comes after each query; `own` is the key of the first."""
    left = max(start, own + 1)
    if left < end:
        add_mask(scores, mask, left - start, left - own, end - left)


def hide_earlier(scores: Any, mask: Any, edge: int, start: int, end: int) -> None:
    """Hide what is before each query's window; `edge` is the first key of the first one's."""
    right = min(end, edge + TILE)
    if start < right:
        add_mask(scores, mask, 0, start - edge + TILE - 1, right - start)


def add_mask(scores: Any, mask: Any, at: int, column: int, width: int) -> None:
    place = scores[:, nl.ds(at, width)]
    part = mask[0 : scores.shape[0], nl.ds(column, width)]
    nisa.tensor_tensor(dst=place, data1=place, data2=part, op=nl.add)


def exponentials(flight: Any, scale: float) -> None:
    """Weights of a span and their total, and what earlier sums shrink by."""
    scores, low = flight["scores"], flight["low"]
    rows, width = scores.shape
    weights = nl.ndarray((rows, width), dtype=flight["tile"]["queries"].dtype, buffer=nl.sbuf)
    total = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(
        dst=weights,
        op=nl.exp,
        data=scores,
        bias=low,
        scale=scale,
        reduce_op=nl.add,
        reduce_res=total,
        reduce_cmd=nisa.reduce_cmd.reset_reduce,
    )
    flight["weights"], flight["total"] = weights, total
    if "old" in flight:
        shrink = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=shrink, op=nl.exp, data=flight["old"], bias=low, scale=-1.0)
        flight["shrink"] = shrink


def turn_weights(flight: Any, turn: int) -> None:
    """The weights of a span with keys on the partitions: [128, blocks, rows].

    The vector engine takes the maximum of all scores, so of three copies it gets one.
    """
    weights = flight["weights"]
    rows, width = weights.shape
    blocks = -(-width // TILE)
    turned = nl.ndarray((TILE, blocks, rows), dtype=weights.dtype, buffer=nl.sbuf)
    for left in range(0, blocks, BANK // TILE):
        number = min(BANK // TILE, blocks - left)
        is_by_scalar = (2 * turn + left // (BANK // TILE)) % 3 > 0
        block = nl.ndarray((TILE, number, rows), dtype=weights.dtype, buffer=nl.psum)
        for at in range(number):
            part = min(TILE, width - (left + at) * TILE)
            source = weights[:, nl.ds((left + at) * TILE, part)]
            nisa.nc_transpose(dst=block[0:part, at, :], data=source, engine=nisa.engine.tensor)
        whole = min(number, width // TILE - left)
        if whole > 0:
            copy_out(turned[:, nl.ds(left, whole), :], block[:, 0:whole, :], is_by_scalar)
        if whole < number:
            part = width % TILE
            copy_out(turned[0:part, left + whole, :], block[0:part, whole, :], is_by_scalar)
    flight["turned"] = turned


def weigh(flight: Any, values: Any, start: int) -> None:
    """End a span: add its weights and weighted values to the sums of its queries."""
    tile, turned, width = flight["tile"], flight["turned"], flight["weights"].shape[1]
    rows, size = turned.shape[2], values.shape[2]
    product = nl.ndarray((rows, size), dtype=nl.float32, buffer=nl.psum)
    for at in range(turned.shape[1]):
        part = min(TILE, width - at * TILE)
        nisa.nc_matmul(
            dst=product,
            stationary=turned[0:part, at, :],
            moving=values[0:part, start // TILE + at, :],
        )
    if "total" in tile:
        flight["total"] = add_shrunk(tile["total"], flight["shrink"], flight["total"])
    tile["total"] = flight["total"]
    if "sums" in tile:
        tile["sums"] = add_shrunk(tile["sums"], flight["shrink"], product)
    else:
        sums = nl.ndarray((rows, size), dtype=nl.float32, buffer=nl.sbuf)
        copy_out(sums, product, False)
        tile["sums"] = sums


def add_shrunk(old: Any, shrink: Any, new: Any) -> Any:
    """old * shrink + new."""
    total = nl.ndarray(old.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=total, data=old, op0=nl.multiply, operand0=shrink, op1=nl.add, operand1=new
    )
    return total


def store(place: Any, tile: Any) -> None:
    """Divide the sums by their totals."""
    rows, size = tile["sums"].shape
    inverse = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse, data=tile["total"])
    result = nl.ndarray((rows, size), dtype=place.dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=result, data=tile["sums"], op0=nl.multiply, operand0=inverse)
    nisa.dma_copy(dst=place, src=result)

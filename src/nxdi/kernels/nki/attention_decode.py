"""Attention of a few tokens of each row to its cache: flat or paged, plain or float8.

Keys lie on partitions: several in a row on each, or a block of a paged cache, so that transfers
move long runs. They are transposed to meet the queries; values are multiplied as they come. The
scores of a head stay in SBUF, so the softmax needs one pass. While the keys of one head are
multiplied, the softmax of the one before is done, and then its values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import torch
from torch import Tensor

from nxdi.kernels.nki.cache_parts import RUN, bytes_of, load_part, load_row, plan_cache
from nxdi.kernels.nki.copies import copy_out
from nxdi.kernels.nki.key_softmax import invert, normalise
from nxdi.kernels.nki.tiles import is_given
from nxdi.kernels.ops import AttendCall
from nxdi.kernels.reference.attend import attend_wide

TILE = 128  # partitions
BANK = 512  # float32 elements of a PSUM bank
SCORES = 2048  # on a partition, of heads that share a softmax
NOTHING = -3e38  # score where there is no key


@dataclass(frozen=True)
class Call:
    """What a call of the kernel is decided on. block_size: of a paged cache, 0 for a flat one."""

    attend: AttendCall
    kv_dtype: torch.dtype
    block_size: int = 0
    generation: int = 3


def supports(call: Call) -> str | None:
    """Why the kernel cannot serve a call, or None."""
    attend = call.attend
    columns = attend.group_size * attend.num_queries
    if columns > TILE:
        return f"{columns} queries per key/value head, more than {TILE}"
    if attend.head_dim > TILE or attend.head_dim != attend.value_dim:
        return f"keys of {attend.head_dim} and values of {attend.value_dim}, not one size <= {TILE}"
    if attend.softcap is not None:
        return "soft-capped scores"
    if call.block_size and call.generation < 3:
        return "a paged cache on gen2, whose DMA cannot gather"
    block = call.block_size * attend.head_dim * call.kv_dtype.itemsize
    if block > RUN:
        return f"blocks of {call.block_size} keys are {block} bytes of a head, more than {RUN}"
    # Of two heads: scores in float32, and weights.
    tiles = -(-attend.num_keys // TILE) + call.block_size
    size = 2 * tiles * columns * (4 + attend.dtype.itemsize)
    if size > 96 * 1024:
        return f"scores of {attend.num_keys} keys with {columns} queries do not fit SBUF"
    return _dtype_reason(attend.dtype, call.kv_dtype)


def _dtype_reason(dtype: torch.dtype, kv_dtype: torch.dtype) -> str | None:
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"dtype {dtype} is no float of 16 or 32 bits"
    if kv_dtype is dtype:
        return None
    is_float8 = kv_dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
    if dtype is not torch.float32 and is_float8:
        return None
    return f"a cache of {kv_dtype} for queries of {dtype}"


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor,
    blocks: Tensor | None = None,
    sinks: Tensor | None = None,
    scales: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """The same in torch, in float32.

    q [B, N, G, S, D]; k, v [B, N, L, D], or of a paged cache [T, N, block, D] with blocks int32
    [B, L / block]; allowed uint8 [B, S, L], 0 where a query does not see a key; sinks [N, G];
    scales float32 [2, N], what stored keys and values are multiplied by -> [B, N, G, S, D].
    """
    if blocks is not None:
        k, v = (x[blocks.long()].transpose(1, 2).flatten(2, 3) for x in (k, v))
    k, v = k.float(), v.float()
    if scales is not None:
        k, v = (x * factor[:, None, None] for x, factor in zip((k, v), scales, strict=True))
    return attend_wide(q, k, v, allowed != 0, sinks, scale)


@nki.jit
def attention_decode(
    q: Any,
    k: Any,
    v: Any,
    allowed: Any,
    blocks: Any = None,
    sinks: Any = None,
    scales: Any = None,
    scale: float = 1.0,
) -> Any:
    """See `reference`; all tensors are in memory. Float8 numbers are at most 240."""
    batch, num_heads, group, num_queries, size = q.shape
    columns = group * num_queries
    out = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    constants = make_constants(q, sinks, scales, scale)
    cache = plan_cache(k, v, blocks, allowed.shape[2])
    heads = [(b, n) for b in range(batch) for n in range(num_heads)]
    together = min(TILE // columns, max(1, SCORES // (cache["width"] * columns)))
    rows: list[Any] = []
    states = []
    for first in range(0, len(heads) + together, together):
        if first < len(heads):
            some = heads[first : first + together]
            while len(rows) <= some[-1][0]:
                rows.append(load_row(allowed, cache, len(rows)))
            queries = load_queries(q, first * columns, len(some), columns)
            state = {"heads": some, "rows": rows, "queries": queries, "columns": columns}
            state["group"], state["size"] = group, size
            states.append(state)
            score(state, cache, constants)
        if first > 0:
            results = weigh(states.pop(0), cache, constants)
            store(out, results, (first - together) * columns)
        if first < len(heads):
            normalise(states[0], constants)
    return out


def stacked(size: int) -> int:
    """Keys of so many numbers that are transposed and multiplied as one, on partitions of each."""
    return TILE // size if size in (32, 64) else 1


def make_constants(q: Any, sinks: Any, scales: Any, scale: float) -> Any:
    """Tiles that all heads share: the identity, ones, sinks and scales on all partitions."""
    ones = nl.ndarray((TILE, TILE), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)
    identity = nl.ndarray((TILE, TILE), dtype=nl.float32, buffer=nl.sbuf)
    nisa.affine_select(
        dst=identity,
        pattern=[[-1, TILE]],
        channel_multiplier=1,
        on_true_tile=ones,
        on_false_value=0.0,
        cmp_op=nl.equal,
    )
    short = nl.ndarray((TILE, TILE), dtype=q.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=short, src=identity, engine=nisa.engine.vector)
    found = {"ones": ones, "identity": identity, "short": short, "scale": scale}
    if stacked(q.shape[4]) > 1:
        found["fold"] = make_fold(identity, q.shape[4])
    num_heads, group, num_queries = q.shape[1:4]
    if is_given(sinks):
        found["sinks"] = spread(sinks, 1, num_heads * group, num_queries)
    if is_given(scales):
        both = spread(scales, TILE, 2 * num_heads, 1)
        keys = both[:, 0:num_heads]
        nisa.tensor_scalar(dst=keys, data=keys, op0=nl.multiply, operand0=scale)
        found["k_scale"], found["v_scale"] = keys, both[:, num_heads : 2 * num_heads]
    return found


def make_fold(identity: Any, size: int) -> Any:
    """What adds up the parts of `size` partitions in a product with it: [128, size]."""
    fold = nl.ndarray((TILE, size), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=fold, src=identity[:, 0:size], engine=nisa.engine.vector)
    for first in range(size, TILE, size):
        part = identity[:, nl.ds(first, size)]
        nisa.tensor_tensor(dst=fold, data1=fold, data2=part, op=nl.add)
    return fold


def spread(source: Any, partitions: int, number: int, times: int) -> Any:
    """Numbers on each partition, each repeated: [partitions, number * times]."""
    tile = nl.ndarray((partitions, number, times), dtype=nl.float32, buffer=nl.sbuf)
    pattern = [[0, partitions], [1, number], [0, times]]
    nisa.dma_copy(dst=tile, src=source.ap(pattern=pattern))
    return tile.reshape((partitions, number * times))


def load_queries(q: Any, first: int, num_heads: int, columns: int) -> Any:
    """Queries of some heads, transposed, for each of the keys that are stacked.

    [copies * size, heads, copies, columns]: zero but where partitions and queries are of one copy,
    so that one product has the scores of all stacked keys.
    """
    size, rows = q.shape[4], num_heads * columns
    copies = stacked(size)
    tile = nl.ndarray((rows, copies, size), dtype=q.dtype, buffer=nl.sbuf)
    pattern = [[size, rows], [0, copies], [1, size]]
    nisa.dma_copy(dst=tile, src=q.ap(pattern=pattern, offset=first * size))
    block = nl.ndarray((copies * size, rows), dtype=q.dtype, buffer=nl.psum)
    nisa.nc_transpose(dst=block, data=tile, engine=nisa.engine.tensor)
    shape = (copies * size, num_heads, copies, columns)
    turned = nl.ndarray(shape, dtype=q.dtype, buffer=nl.sbuf)
    if copies > 1:
        nisa.memset(dst=turned, value=0.0)
    for copy in range(copies):
        part = nl.ds(copy * size, size)
        source = block[part, :].reshape((size, num_heads, columns))
        copy_out(turned[part, :, copy, :], source, True)
    return turned


def score(state: Any, cache: Any, constants: Any) -> None:
    """Scaled, masked scores of all keys of some heads: [128, keys on each, queries].

    A sink is a key more, on the first partition, whose value is zero.
    """
    each, parts = state["columns"], cache["parts"]
    is_sink = "sinks" in constants
    shape = (TILE, cache["width"] + is_sink, len(state["heads"]) * each)
    scores = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
    state["scores"] = scores
    waiting = []
    for number in range(len(state["heads"])):
        b, n = state["heads"][number]
        place = scores[:, :, nl.ds(number * each, each)]
        if is_sink:
            nisa.memset(dst=place[:, cache["width"], :], value=NOTHING)
            sinks = constants["sinks"][:, nl.ds(n * each, each)]
            nisa.tensor_copy(dst=place[0:1, cache["width"], :], src=sinks)
        column = 0
        for at in range(len(parts)):
            _, partitions, width = parts[at]
            if partitions < TILE:
                nisa.memset(dst=place[:, nl.ds(column, width), :], value=NOTHING)
            keys = load_part(cache["k"], state, number, parts[at], at)
            step = keys_at_once(keys, each)
            for left in range(0, width, step):
                some = nl.ds(left, min(step, width - left))
                turned = turn_keys(keys[:, some, :], constants, left // step % 2 == 0)
                mask = state["rows"][b]["masks"][at][:, :, some]
                target = place[0:partitions, nl.ds(column + left, some.size), :]
                waiting.append((number, turned, mask, target))
                # Some steps behind, since the copies to SBUF take their time.
                if len(waiting) > 3:
                    multiply(state, waiting.pop(0), constants)
            column += width
    for given in waiting:
        multiply(state, given, constants)


def keys_at_once(keys: Any, columns: int) -> int:
    """Keys on each partition whose transposed form fits one PSUM bank, and their scores one."""
    copies = stacked(keys.shape[2])
    is_short = keys.dtype in (nl.bfloat16, nl.float16)
    blocks = 2 * BANK // TILE if is_short else BANK // TILE
    return min(blocks * copies, BANK // columns // copies * copies)


def turn_keys(keys: Any, constants: Any, is_by_scalar: bool) -> Any:
    """[partitions, number, size] -> blocks [copies * size, blocks, partitions]."""
    partitions, number, size = keys.shape
    copies = stacked(size)
    blocks = -(-number // copies)
    is_float8 = bytes_of(keys.dtype) == 1
    wide = nl.float32 if is_float8 else keys.dtype
    rows = min(copies, number) * size
    block = nl.ndarray((rows, blocks, partitions), dtype=wide, buffer=nl.psum)
    dtype = constants["short"].dtype
    turned = nl.ndarray((rows, blocks, partitions), dtype=dtype, buffer=nl.sbuf)
    for at in range(blocks):
        count = min(copies, number - at * copies)
        source = keys[:, nl.ds(at * copies, count), :]
        place = block[0 : count * size, at, :]
        if is_float8:
            unit = constants["short"][0:partitions, 0:partitions]
            nisa.nc_matmul(dst=place, stationary=source, moving=unit, is_moving_onezero=True)
        else:
            nisa.nc_transpose(dst=place, data=source, engine=nisa.engine.tensor)
    whole = number // copies
    if whole > 0:
        copy_out(turned[:, 0:whole, :], block[:, 0:whole, :], is_by_scalar)
    if whole < blocks:
        rest = (number - whole * copies) * size
        copy_out(turned[0:rest, whole, :], block[0:rest, whole, :], is_by_scalar)
    return turned


def multiply(state: Any, waiting: Any, constants: Any) -> None:
    """Scores of some keys: queries times transposed keys, scaled and masked."""
    head, turned, mask, place = waiting
    (partitions, number, columns), size = place.shape, state["size"]
    copies = stacked(size)
    queries = state["queries"]
    product = nl.ndarray((partitions, number, columns), dtype=nl.float32, buffer=nl.psum)
    for at in range(0, number, copies):
        count = min(copies, number - at)
        rows = nl.ds(0, count * size)
        nisa.nc_matmul(
            dst=product[:, nl.ds(at, count), :],
            stationary=turned[rows, at // copies, :],
            moving=queries[rows, head, 0:count, :],
        )
    factor = constants["scale"]
    if "k_scale" in constants:
        factor = constants["k_scale"][0:partitions, nl.ds(state["heads"][head][1], 1)]
    bias = mask.permute((0, 2, 1)).expand_dim(2).broadcast(2, state["group"])
    nisa.scalar_tensor_tensor(
        dst=place, data=product, op0=nl.multiply, operand0=factor, op1=nl.add, operand1=bias
    )


def weigh(state: Any, cache: Any, constants: Any) -> Any:
    """The values of some heads, weighted and summed: results, transposed [size, queries].

    Stacked values are multiplied with the weights of all of them, and each counts with its own.
    """
    each, size, dtype = state["columns"], state["size"], state["queries"].dtype
    num_columns = len(state["heads"]) * each
    copies = min(stacked(size), cache["parts"][0][2])
    sums = nl.ndarray((copies * size, num_columns), dtype=nl.float32, buffer=nl.sbuf)
    for number in range(len(state["heads"])):
        mine = nl.ds(number * each, each)
        product = nl.ndarray((copies * size, copies, each), dtype=nl.float32, buffer=nl.psum)
        add_values(product, state, cache, number)
        for copy in range(copies):
            part = nl.ds(copy * size, size)
            copy_out(sums[part, mine], product[part, copy, :], True)
    if copies > 1:
        folded = nl.ndarray((size, num_columns), dtype=nl.float32, buffer=nl.psum)
        fold = constants["fold"][0 : copies * size, :]
        nisa.nc_matmul(dst=folded, stationary=fold, moving=sums, is_stationary_onezero=True)
        sums = folded
    inverse = invert(state["sums"], size, constants)
    results = nl.ndarray((size, num_columns), dtype=dtype, buffer=nl.sbuf)
    for number in range(len(state["heads"])):
        mine, factor = nl.ds(number * each, each), 1.0
        if "v_scale" in constants:
            factor = constants["v_scale"][0:size, nl.ds(state["heads"][number][1], 1)]
        nisa.scalar_tensor_tensor(
            dst=results[:, mine],
            data=sums[:, mine],
            op0=nl.multiply,
            operand0=factor,
            op1=nl.multiply,
            operand1=inverse[:, mine],
        )
    return results


def add_values(product: Any, state: Any, cache: Any, number: int) -> None:
    """Values of a head times weights: [copies * size, copies, queries], on the diagonal."""
    each, size, copies, column = state["columns"], state["size"], product.shape[1], 0
    mine = nl.ds(number * each, each)
    for at in range(len(cache["parts"])):
        _, partitions, width = cache["parts"][at]
        values = load_part(cache["v"], state, number, cache["parts"][at], at)
        for key in range(0, width, copies):
            count = min(copies, width - key)
            nisa.nc_matmul(
                dst=product[0 : count * size, 0:count, :],
                stationary=values[:, nl.ds(key, count), :],
                moving=state["weights"][0:partitions, nl.ds(column + key, count), mine],
            )
        column += width


def store(out: Any, results: Any, first: int) -> None:
    """Write results [size, rows] where the rows from `first` on are."""
    size, rows = results.shape
    block = nl.ndarray((rows, size), dtype=results.dtype, buffer=nl.psum)
    nisa.nc_transpose(dst=block, data=results, engine=nisa.engine.tensor)
    tile = nl.ndarray((rows, size), dtype=results.dtype, buffer=nl.sbuf)
    copy_out(tile, block, True)
    pattern = [[size, rows], [1, size]]
    nisa.dma_copy(dst=out.ap(pattern=pattern, offset=first * size), src=tile)

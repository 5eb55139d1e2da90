"""Keys and values of a cache, flat or paged, as decode kernels load them.

Keys lie on partitions: several in a row on each, or a block of a paged cache, so that transfers
move long runs.
"""

from __future__ import annotations

from typing import Any

import nki.isa as nisa
import nki.language as nl

from nxdi.kernels.nki.tiles import is_given

TILE = 128  # partitions
RUN = 8192  # bytes of keys that a partition gets at once
HIDDEN = -1e30  # added to scores that a query may not see


def plan_cache(k: Any, v: Any, blocks: Any, num_keys: int) -> Any:
    """Keys, values, and the parts they are loaded in: (first key, partitions, keys on each).

    width: keys of a row on each partition.
    """
    size, parts, first, total = k.shape[3], [], 0, 0
    width = max(1, RUN // (size * bytes_of(k.dtype)))
    while first < num_keys:
        rest = num_keys - first
        if is_given(blocks):
            part = first, min(TILE, rest // k.shape[2]), k.shape[2]
        elif rest >= TILE:
            part = first, TILE, min(width, rest // TILE)
        else:
            part = first, rest, 1
        parts.append(part)
        first += part[1] * part[2]
        total += part[2]
    found = {"k": as_stored(k), "v": as_stored(v), "parts": parts, "width": total}
    if is_given(blocks):
        found["blocks"] = blocks
    return found


def as_stored(cache: Any) -> Any:
    """torch has no float8_e4m3 of the device; its float8_e4m3fn has the same bits up to 240."""
    return cache.view(nl.float8_e4m3) if cache.dtype == nl.float8_e4m3fn else cache


def bytes_of(dtype: Any) -> int:
    if dtype == nl.float32:
        return 4
    return 2 if dtype in (nl.bfloat16, nl.float16) else 1


def load_row(allowed: Any, cache: Any, b: int) -> Any:
    """Of each part of a row: what is added to scores [partitions, queries, keys], and blocks."""
    num_queries, masks, tables = allowed.shape[1], [], []
    for part in cache["parts"]:
        first, partitions, width = part
        bits = nl.ndarray((partitions, num_queries, width), dtype=allowed.dtype, buffer=nl.sbuf)
        source = allowed[b, :, nl.ds(first, partitions * width)]
        source = source.reshape_dim(1, (partitions, width)).permute((1, 0, 2))
        nisa.dma_copy(dst=bits, src=source)
        mask = nl.ndarray(bits.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=mask, data=bits, op0=nl.subtract, operand0=1.0, op1=nl.multiply, operand1=-HIDDEN
        )
        masks.append(mask)
        if "blocks" in cache:
            table = nl.ndarray((partitions, 1), dtype=nl.int32, buffer=nl.sbuf)
            offset = b * cache["blocks"].shape[1] + first // width
            source = cache["blocks"].ap(pattern=[[1, partitions], [1, 1]], offset=offset)
            nisa.dma_copy(dst=table, src=source)
            tables.append(table)
    return {"masks": masks, "tables": tables}


def load_part(source: Any, state: Any, number: int, part: Any, at: int) -> Any:
    """Keys or values of a head in part number `at`: [partitions, keys on each, size]."""
    (b, n), (first, partitions, width), size = state["heads"][number], part, state["size"]
    run = width * size
    tile = nl.ndarray((partitions, width, size), dtype=source.dtype, buffer=nl.sbuf)
    tables = state["rows"][b]["tables"]
    if len(tables) == 0:
        rows = source[b, n, nl.ds(first, partitions * width), :]
        nisa.dma_copy(dst=tile, src=rows.reshape((partitions, width, size)))
    else:
        blocks = source.ap(
            pattern=[[source.shape[1] * run, partitions], [1, run]],
            offset=n * run,
            vector_offset=tables[at],
            indirect_dim=0,
        )
        nisa.dma_copy(dst=tile.reshape((partitions, run)), src=blocks)
    return tile

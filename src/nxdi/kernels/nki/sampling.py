"""The k largest logits of each row and where they are; with k = 1, argmax.

A row's vocabulary is spread over partitions, so that few rows keep all of them busy, and each
partition is searched in pieces. What they find meets on the row's own partition, where the best of
it are found again. Of equal logits the first is taken. Logits are finite: minus infinity, once
among the best, is found again and again.
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

WAYS = 8  # values that the vector engine finds at once
PIECE = 16384  # elements that it searches at once
LOWEST = -3.4e38  # takes the place of what was found


@dataclass(frozen=True)
class Call:
    """What a call of the kernel is decided on: logits [B, V]."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    top_k: int = 1


def supports(call: Call) -> str | None:
    """Why the kernel cannot serve a call, or None."""
    if len(call.shape) != 2:
        return f"logits have shape {call.shape}; the kernel takes [B, V]"
    vocabulary = call.shape[1]
    if not WAYS <= vocabulary <= 2**18:
        return f"a vocabulary of {vocabulary} is not one of {WAYS} to {2**18}"
    if not 0 < call.top_k <= min(256, vocabulary // WAYS * WAYS):
        return f"top_k={call.top_k} of {vocabulary}; the kernel finds up to 256, in whole eights"
    if call.dtype not in (torch.float32, torch.bfloat16):
        return f"dtype {call.dtype} is neither bfloat16 nor float32"
    return None


def reference(logits: Tensor, top_k: int = 1) -> tuple[Tensor, Tensor]:
    """The same in torch: values float32 and indices int32, both [B, top_k]."""
    values, places = logits.float().sort(dim=-1, descending=True, stable=True)
    return values[:, :top_k], places[:, :top_k].int()


def count_stages(num_rows: int, vocabulary: int, num_found: int) -> int:
    """Partitions per row: equal parts, with the fewest elements to search in both steps."""
    stages, fewest = 1, vocabulary * num_found
    for number in range(1, TILE // min(num_rows, TILE) + 1):
        width = vocabulary // number
        found = -(-width // PIECE) * number * num_found
        is_possible = vocabulary % number == 0 and width >= num_found and found <= PIECE
        if is_possible and width + found < fewest:
            stages, fewest = number, width + found
    return stages


@nki.jit
def sampling(logits: Any, top_k: int = 1) -> Any:
    """logits [B, V] in memory -> values float32 and indices int32, both [B, top_k]."""
    num_rows, vocabulary = logits.shape
    num_found = -(-top_k // WAYS) * WAYS
    stages = count_stages(num_rows, vocabulary, num_found)
    width = vocabulary // stages
    spread = logits.reshape((num_rows * stages, width))
    values_out = nl.ndarray((num_rows, top_k), dtype=nl.float32, buffer=nl.shared_hbm)
    places_out = nl.ndarray((num_rows, top_k), dtype=nl.int32, buffer=nl.shared_hbm)
    for first in range(0, num_rows, TILE // stages):
        rows = min(TILE // stages, num_rows - first)
        part = spread[nl.ds(first * stages, rows * stages), :]
        values, places = search_pieces(part, num_found)
        if values.shape[1] > num_found or stages > 1:
            values, places = merge(values, places, rows, stages, width, num_found)
        numbers = nl.ndarray((rows, top_k), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=numbers, src=values[:, 0:top_k])
        tokens = nl.ndarray((rows, top_k), dtype=nl.int32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=tokens, src=places[:, 0:top_k])
        nisa.dma_copy(dst=values_out[nl.ds(first, rows), :], src=numbers)
        nisa.dma_copy(dst=places_out[nl.ds(first, rows), :], src=tokens)
    return values_out, places_out


def search_pieces(part: Any, num_found: int) -> Any:
    """The best of each piece of each row of `part` [P, W], and their columns: two [P, N]."""
    partitions, width = part.shape
    num_pieces = -(-width // PIECE)
    size = -(-width // num_pieces)
    shape = (partitions, num_pieces * num_found)
    values = nl.ndarray(shape, dtype=part.dtype, buffer=nl.sbuf)
    places = nl.ndarray(shape, dtype=nl.uint32, buffer=nl.sbuf)
    for piece in range(num_pieces):
        start = piece * size
        length = min(size, width - start)
        tile = nl.ndarray((partitions, length), dtype=part.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=part[:, nl.ds(start, length)])
        found = nl.ds(piece * num_found, num_found)
        search(values[:, found], places[:, found], tile)
        if start > 0:
            here = places[:, found]
            nisa.tensor_scalar(dst=here, data=here, op0=nl.add, operand0=start)
    return values, places


def search(values: Any, places: Any, tile: Any) -> None:
    """The largest elements of each row of a tile in descending order, which it then lacks."""
    num_found = values.shape[1]
    for at in range(0, num_found, WAYS):
        best = values[:, nl.ds(at, WAYS)]
        nisa.max8(dst=best, src=tile)
        nisa.nc_find_index8(dst=places[:, nl.ds(at, WAYS)], data=tile, vals=best)
        if at + WAYS < num_found:
            nisa.nc_match_replace8(dst=tile, data=tile, vals=best, imm=LOWEST)


def merge(values: Any, places: Any, rows: int, stages: int, width: int, num_found: int) -> Any:
    """The best of what a row's partitions have found [rows * stages, N]: two [rows, num_found]."""
    each = values.shape[1]
    candidates = nl.ndarray((rows, stages * each), dtype=values.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=candidates, src=values)
    tokens = nl.ndarray((rows, stages * each), dtype=nl.uint32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tokens, src=places)
    starts = nl.ndarray((rows, stages * each), dtype=nl.uint32, buffer=nl.sbuf)
    nisa.iota(dst=starts, pattern=[[width, stages], [0, each]])
    nisa.tensor_tensor(dst=tokens, data1=tokens, data2=starts, op=nl.add)
    best = nl.ndarray((rows, num_found), dtype=values.dtype, buffer=nl.sbuf)
    at = nl.ndarray((rows, num_found), dtype=nl.uint32, buffer=nl.sbuf)
    search(best, at, candidates)
    chosen = nl.ndarray((rows, num_found), dtype=nl.uint32, buffer=nl.sbuf)
    nisa.nc_n_gather(dst=chosen, data=tokens, indices=at)
    return best, chosen

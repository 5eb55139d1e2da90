"""Where the cache has each request: blocks as vLLM gives them, or a row of our own choice."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from nxdi.config import NeuronConfig
from nxdi.generation.work import Work
from nxdi.integrations.vllm.layout import FIRST_BLOCK

if TYPE_CHECKING:
    from nxdi.integrations.vllm.requests import RunningRequest


class Tables(Protocol):
    """Keeps the table of each request: its blocks in order, or its one cache row."""

    def add(self, table: list[int], block_ids: list[int]) -> None:
        """Add blocks, numbered as vLLM does, to the table of a request that runs."""
        ...

    def release(self, table: list[int]) -> None:
        """The request has ended, or all its blocks will be others."""
        ...


class BlockTables:
    """vLLM shares blocks and takes them back."""

    def add(self, table: list[int], block_ids: list[int]) -> None:
        table += [block - FIRST_BLOCK for block in block_ids]

    def release(self, table: list[int]) -> None:
        table.clear()


class RowTables:
    """The lowest free row, so that the smallest decode graph holds the requests that run.

    vLLM gives each request one block, and takes a free one in turn: as a row its number would lead
    all requests through the whole cache.
    """

    def __init__(self, num_rows: int) -> None:
        self._free = list(range(num_rows))

    def add(self, table: list[int], block_ids: list[int]) -> None:
        table += [heapq.heappop(self._free) for _ in block_ids]

    def release(self, table: list[int]) -> None:
        for row in table:
            heapq.heappush(self._free, row)
        table.clear()


def make_tables(config: NeuronConfig) -> Tables:
    """As the cache is laid out."""
    return BlockTables() if config.is_block_kv_layout else RowTables(config.max_batch_size)


def independent(
    works: Sequence[Work[RunningRequest]], block_size: int
) -> Iterator[list[Work[RunningRequest]]]:
    """The works of a step in order, in parts: none reads a block that another of its part writes.

    vLLM lets a request find the prefix that another one computes in the same step, as its own
    kernels write all rows before they read any.
    """
    part: list[Work[RunningRequest]] = []
    written: set[int] = set()
    for work in works:
        table, first = work.request.table, work.start // block_size
        if not written.isdisjoint(table[:first]):
            yield part
            part, written = [], set()
        part.append(work)
        written.update(table[first : (work.stop - 1) // block_size + 1])
    yield part

"""Rows of new tokens, each of which knows its place in the cache, as inputs of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi.config import NeuronConfig
from nxdi.graph.paging import default_blocks


@dataclass(frozen=True)
class Row:
    """New tokens of one sequence, from position `start` on.

    table: the sequence's blocks in order; in the contiguous layout its one cache row.
    """

    tokens: Sequence[int]
    start: int
    table: Sequence[int]


def row_inputs(config: NeuronConfig, rows: Sequence[Row]) -> dict[str, Tensor]:
    """What a model's `forward` takes of rows of one phase, in their order."""
    width = max(len(row.tokens) for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.int32)
    position_ids = torch.full_like(input_ids, -1)
    for i, row in enumerate(rows):
        num_tokens = len(row.tokens)
        input_ids[i, :num_tokens] = torch.tensor(row.tokens)
        position_ids[i, :num_tokens] = torch.arange(row.start, row.start + num_tokens)
    inputs = {"input_ids": input_ids, "position_ids": position_ids}
    tables = [row.table for row in rows]
    if not config.is_block_kv_layout:
        return {**inputs, "seq_ids": torch.tensor([row[0] for row in tables], dtype=torch.int32)}
    seq_ids = torch.arange(len(rows), dtype=torch.int32)
    return {**inputs, "seq_ids": seq_ids, "block_table": _block_table(tables)}


def row_tables(config: NeuronConfig, num_rows: int) -> list[list[int]]:
    """The table of each row where every row has an equal part of the cache.

    Raises: ShapeError if a pool of blocks has not enough for that.
    """
    if not config.is_block_kv_layout:
        return [[row] for row in range(num_rows)]
    tables: list[list[int]] = default_blocks(num_rows, config).tolist()
    return tables


def _block_table(tables: Sequence[Sequence[int]]) -> Tensor:
    """[R, n] int32; shorter rows end in -1."""
    padded = torch.full((len(tables), max(map(len, tables))), -1, dtype=torch.int32)
    for row, table in enumerate(tables):
        padded[row, : len(table)] = torch.tensor(table)
    return padded

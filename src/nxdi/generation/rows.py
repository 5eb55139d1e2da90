"""One call of a model with rows of new tokens, each of which knows its place in the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nxdi.models.causal_lm import CausalLMOutput, NeuronBaseForCausalLM


@dataclass(frozen=True)
class Row:
    """New tokens of one sequence, from position `start` on.

    table: the sequence's blocks in order; in the contiguous layout its one cache row.
    """

    tokens: Sequence[int]
    start: int
    table: Sequence[int]


def run_rows(
    model: NeuronBaseForCausalLM, rows: Sequence[Row], sampling: Mapping[str, Any]
) -> CausalLMOutput:
    """Run rows of one phase; outputs in the order of `rows`.

    sampling: what `forward` takes of sampling_params and seeds.
    """
    width = max(len(row.tokens) for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.int32)
    position_ids = torch.full_like(input_ids, -1)
    for i, row in enumerate(rows):
        num_tokens = len(row.tokens)
        input_ids[i, :num_tokens] = torch.tensor(row.tokens)
        position_ids[i, :num_tokens] = torch.arange(row.start, row.start + num_tokens)
    tables = [row.table for row in rows]
    if model.neuron_config.is_block_kv_layout:
        seq_ids = torch.arange(len(rows), dtype=torch.int32)
        cache = {"block_table": _block_table(tables)}
    else:
        seq_ids, cache = torch.tensor([table[0] for table in tables], dtype=torch.int32), {}
    return model(input_ids, position_ids=position_ids, seq_ids=seq_ids, **cache, **sampling)


def _block_table(tables: Sequence[Sequence[int]]) -> Tensor:
    """[R, n] int32; shorter rows end in -1."""
    padded = torch.full((len(tables), max(map(len, tables))), -1, dtype=torch.int32)
    for row, table in enumerate(tables):
        padded[row, : len(table)] = torch.tensor(table)
    return padded

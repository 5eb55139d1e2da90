"""Between a caller's rows and the fixed shape of a graph: padding in, picking out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nxdi.errors import ShapeError
from nxdi.graph.plan import GraphSpec
from nxdi.types import Phase


@dataclass
class StepBatch:
    """One step as the caller sees it, rows in any order.

    Shapes: input_ids, position_ids [R, S] (position -1 = padding, only on the right); seq_ids [R]:
    the cache row of each batch row; extras: further declared inputs by name, [R, ...].
    """

    phase: Phase
    input_ids: Tensor
    position_ids: Tensor
    seq_ids: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return self.input_ids.shape[0]

    @property
    def length(self) -> int:
        """Tokens this step needs a bucket for: new tokens in prefill, attended slots in decode."""
        if self.phase is Phase.PREFILL:
            return int((self.position_ids >= 0).sum(dim=1).max())
        return int(self.position_ids.max()) + 1

    def rows(self, start: int, stop: int) -> StepBatch:
        """The rows from `start` to `stop` as a batch of their own."""
        return StepBatch(
            self.phase,
            self.input_ids[start:stop],
            self.position_ids[start:stop],
            self.seq_ids[start:stop],
            {name: value[start:stop] for name, value in self.extras.items()},
        )


def graph_rows(batch: StepBatch) -> Tensor:
    """The graph row of each batch row.

    Prefill rows keep their order and carry their cache row in `seq_ids`. In decode, graph row r
    *is* cache row r, so that the cache is read in place instead of being gathered.
    """
    if batch.phase is Phase.DECODE:
        return batch.seq_ids.long()
    return torch.arange(batch.num_rows)


def num_graph_rows(batch: StepBatch) -> int:
    """Rows the graph must have at least."""
    return int(graph_rows(batch).max()) + 1


def only_padding(spec: GraphSpec) -> dict[str, Tensor]:
    """Inputs of `spec` without any row, by name."""
    return {
        item.name: torch.full(
            item.shape(spec.batch_size, spec.num_tokens),
            item.fill,
            dtype=getattr(torch, item.dtype),
        )
        for item in spec.inputs
    }


def pad_step(batch: StepBatch, spec: GraphSpec) -> dict[str, Tensor]:
    """The named, fixed-shape inputs of `spec`.

    Raises: ShapeError if a declared input is missing.
    """
    given = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "seq_ids": batch.seq_ids,
        **batch.extras,
    }
    rows = graph_rows(batch)
    padded = only_padding(spec)
    if batch.phase is Phase.DECODE:
        padded["seq_ids"] = torch.arange(spec.batch_size, dtype=torch.int32)
    for name, target in padded.items():
        if name not in given:
            raise ShapeError(
                f"graph {spec.name} needs the input {name!r}, which this step does not bring"
            )
        value = given[name]
        if value.dim() > 1:
            width = min(target.shape[1], value.shape[1])
            target[rows, :width] = value[:, :width].to(target.dtype)
        else:
            target[rows] = value.to(target.dtype)
    return padded


def unpad_step(outputs: Mapping[str, Tensor], batch: StepBatch) -> dict[str, Tensor]:
    """The outputs of the caller's rows, in the caller's order."""
    rows = graph_rows(batch)
    return {name: value[rows] for name, value in outputs.items()}

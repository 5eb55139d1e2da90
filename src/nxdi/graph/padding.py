"""Between a caller's rows and the fixed shape of a graph: padding in, picking out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
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
    the cache row of each batch row, None where the cache has no rows but blocks; extras: further
    declared inputs by name, [R, ...].
    """

    phase: Phase
    input_ids: Tensor
    position_ids: Tensor
    seq_ids: Tensor | None
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return self.input_ids.shape[0]

    @property
    def length(self) -> int:
        """Tokens this step needs a bucket for: attended slots in decode, else new tokens."""
        if self.phase is Phase.DECODE:
            return int(self.position_ids.max()) + 1
        return int((self.position_ids >= 0).sum(dim=1).max())

    @property
    def context(self) -> int:
        """Positions that rows see, for a step that brings them several tokens; else 0."""
        sees = self.phase in (Phase.EXTEND, Phase.VERIFY)
        return int(self.position_ids.max()) + 1 if sees else 0

    def rows(self, rows: slice | Tensor) -> StepBatch:
        """Some of the rows as a batch of their own."""
        return StepBatch(
            self.phase,
            self.input_ids[rows],
            self.position_ids[rows],
            None if self.seq_ids is None else self.seq_ids[rows],
            {name: value[rows] for name, value in self.extras.items()},
        )

    def pieces(
        self, longest: int, per_token: Collection[str] = ()
    ) -> Iterator[tuple[Tensor, StepBatch]]:
        """The step in steps of at most `longest` tokens per row, and which rows [n] each has.

        The first is of this phase, those after it extend its rows. per_token: the extras that have
        something for each token.
        """
        for start in range(0, self.input_ids.shape[1], longest):
            columns = slice(start, start + longest)
            rows = (self.position_ids[:, start] >= 0).nonzero().flatten()
            part = self.rows(rows)
            part.input_ids, part.position_ids = (
                x[:, columns] for x in (part.input_ids, part.position_ids)
            )
            part.extras = {
                name: value[:, columns] if name in per_token else value
                for name, value in part.extras.items()
            }
            part.phase = self.phase if start == 0 else Phase.EXTEND
            yield rows, part


def graph_rows(batch: StepBatch) -> Tensor:
    """The graph row of each batch row.

    Rows keep their order and carry their cache row in `seq_ids`, or their blocks. But in decoding
    graph row r *is* cache row r, so that the cache is read in place instead of being gathered.
    """
    if batch.phase.is_decoding and batch.seq_ids is not None:
        return batch.seq_ids.long()
    return torch.arange(batch.num_rows)


def num_graph_rows(batch: StepBatch) -> int:
    """Rows the graph must have at least."""
    return int(graph_rows(batch).max()) + 1


def only_padding(spec: GraphSpec) -> dict[str, Tensor]:
    """Inputs of `spec` without any row, by name."""
    shapes = spec.input_shapes()
    return {
        item.name: torch.full(shapes[item.name], item.fill, dtype=getattr(torch, item.dtype))
        for item in spec.inputs
    }


def pad_step(batch: StepBatch, spec: GraphSpec) -> dict[str, Tensor]:
    """The named, fixed-shape inputs of `spec`.

    Raises: ShapeError if a declared input is missing.
    """
    given = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        **({} if batch.seq_ids is None else {"seq_ids": batch.seq_ids}),
        **batch.extras,
    }
    rows = graph_rows(batch)
    padded = only_padding(spec)
    if batch.phase.is_decoding and "seq_ids" in padded:
        padded["seq_ids"] = torch.arange(spec.batch_size, dtype=torch.int32)
    for name, target in padded.items():
        if name not in given:
            raise ShapeError(
                f"graph {spec.name} needs the input {name!r}, which this step does not bring"
            )
        value = given[name]
        sizes = zip(target.shape[1:], value.shape[1:], strict=True)
        filled: list[Tensor | slice] = [slice(min(both)) for both in sizes]
        target[tuple([rows, *filled])] = value[tuple([slice(None), *filled])].to(target.dtype)
    return padded


def unpad_step(outputs: Mapping[str, Tensor], batch: StepBatch) -> dict[str, Tensor]:
    """The outputs of the caller's rows, in the caller's order."""
    rows = graph_rows(batch)
    return {name: value[rows] for name, value in outputs.items()}

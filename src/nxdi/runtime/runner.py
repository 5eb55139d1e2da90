"""One step: choose the graph, pad, run every rank, unpad."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from nxdi.graph.inputs import TOKENS
from nxdi.graph.padding import StepBatch, num_graph_rows, only_padding, pad_step, unpad_step
from nxdi.graph.plan import FEATURES, GraphPlan, GraphSpec
from nxdi.parallel_layers.groups import World
from nxdi.runtime.backend import RankExecutable
from nxdi.types import Phase

Observer = Callable[[GraphSpec, Mapping[str, Tensor]], None]


class Runner:
    """Drives the loaded graphs of all local ranks.

    observers: called before each run of a graph, with its inputs; for tools that look on.
    """

    def __init__(
        self, plan: GraphPlan, world: World, executables: Sequence[RankExecutable]
    ) -> None:
        self.plan, self.world, self.executables = plan, world, executables
        self.observers: list[Observer] = []

    def step(self, batch: StepBatch) -> dict[str, Tensor]:
        """Outputs by name, rows in the caller's order.

        Raises: BucketError before anything is computed.
        """
        widest = self.plan.max_batch(batch.phase)
        if not batch.phase.is_decoding and batch.num_rows > widest:
            self.plan.choose(batch.phase, widest, batch.length, batch.context)
            starts = range(0, batch.num_rows, widest)
            parts = [self.step(batch.rows(slice(start, start + widest))) for start in starts]
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        spec = self.plan.choose(batch.phase, num_graph_rows(batch), batch.length, batch.context)
        return unpad_step(self._run(spec, pad_step(batch, spec)), batch)

    def step_in_pieces(self, batch: StepBatch) -> dict[str, Tensor]:
        """`step`, or several where rows can be extended and have more tokens than a graph takes.

        Returns: the outputs of each row's last token, features of all. Raises: BucketError before
        anything is computed.
        """
        longest = self.plan.max_length(Phase.PREFILL)
        if batch.input_ids.shape[1] <= longest or Phase.EXTEND not in self.plan.phases:
            return self.step(batch)
        widest, context = self.plan.max_batch(Phase.EXTEND), int(batch.position_ids.max()) + 1
        self.plan.choose(Phase.EXTEND, min(batch.num_rows, widest), longest, context)
        found: dict[str, Tensor] = {}
        features: list[Tensor] = []
        per_token = {item.name for item in self.plan.graphs[0].inputs if TOKENS in item.dims}
        for rows, part in batch.pieces(longest, per_token):
            outputs = self.step(part)
            if FEATURES in outputs:
                value = outputs.pop(FEATURES)
                features.append(value.new_zeros(batch.num_rows, longest, value.shape[-1]))
                features[-1][rows, : value.shape[1]] = value
            for name, value in outputs.items():
                whole = found.setdefault(name, value.new_empty(batch.num_rows, *value.shape[1:]))
                whole[rows] = value
        return {**found, FEATURES: torch.cat(features, dim=1)} if features else found

    def _run(self, spec: GraphSpec, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        for observe in self.observers:
            observe(spec, inputs)
        return self.world.run(
            [partial(executable, spec, inputs) for executable in self.executables]
        )[0]

    def warm_up(self) -> None:
        """Run the shortest graph of each phase once on padding: weights are read, code is loaded.

        No reader of a cache sees a difference.
        """
        for phase in self.plan.phases:
            spec = min(self.plan.of(phase), key=lambda graph: (graph.length, graph.batch_size))
            self._run(spec, only_padding(spec))

    def reset(self) -> None:
        """Forget all sequences."""
        for executable in self.executables:
            executable.reset()

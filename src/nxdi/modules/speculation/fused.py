"""A draft model and its target in one graph: the state of a step is the caches of both.

Every step computes the same tokens with both, so both caches always hold the same sequences.
Legend: B rows, S new tokens per row, K tokens per row of a step that proposes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from nxdi.graph.plan import GraphSpec
from nxdi.modules.speculation.acceptance import NO_TOKEN, Accepted, accept_matching
from nxdi.parallel_layers.parallel_state import tensor_parallel
from nxdi.types import Phase

Step = tuple[dict[str, Tensor], list[Tensor]]


class StepModel(Protocol):
    """What is held: a Decoder."""

    def step(
        self, spec: GraphSpec, inputs: Mapping[str, Tensor], caches: Sequence[Tensor]
    ) -> Step: ...

    def cache_shapes(self) -> list[tuple[int, ...]]: ...

    def cache_dtypes(self) -> list[torch.dtype]: ...


class DraftAndTarget(nn.Module):
    """Both models take the same tokens; what the target returns counts.

    draft_degree: ranks that the draft model is cut for: all, or 1 where each holds it whole.
    """

    composes = False

    def __init__(self, draft: StepModel, target: StepModel, draft_degree: int) -> None:
        super().__init__()
        self.draft_model, self.target_model = draft, target
        self._draft_degree = draft_degree
        self._num_draft_caches = len(draft.cache_shapes())

    def cache_shapes(self) -> list[tuple[int, ...]]:
        """Shape of every cache tensor on one rank, the draft model's first."""
        return [*self.draft_model.cache_shapes(), *self.target_model.cache_shapes()]

    def cache_dtypes(self) -> list[torch.dtype]:
        """The dtype of each of them."""
        return [*self.draft_model.cache_dtypes(), *self.target_model.cache_dtypes()]

    def step(self, spec: GraphSpec, inputs: Mapping[str, Tensor], caches: Sequence[Tensor]) -> Step:
        """One step of graph `spec`, as a Decoder's."""
        draft, target = caches[: self._num_draft_caches], caches[self._num_draft_caches :]
        _, draft = self.draft_step(spec, inputs, draft)
        outputs, target = self.target_model.step(spec, inputs, target)
        return outputs, [*draft, *target]

    def draft_step(
        self, spec: GraphSpec, inputs: Mapping[str, Tensor], caches: Sequence[Tensor]
    ) -> Step:
        """One step of the draft model, among its own ranks."""
        with tensor_parallel(self._draft_degree):
            return self.draft_model.step(spec, inputs, caches)


class ProposeAndVerify(DraftAndTarget):
    """The draft model proposes token after token, the target looks at all of them at once.

    Of the input tokens only the first of each row is read; positions say where it stands and, from
    the second on, for how many proposals the row has room: -1 = none.
    """

    def step(self, spec: GraphSpec, inputs: Mapping[str, Tensor], caches: Sequence[Tensor]) -> Step:
        """One step of graph `spec`.

        Returns: tokens int32 [B, K], as `accept_matching` has them; logits [B, K, vocab_size] of
        each, if they are asked for; and the caches.
        """
        draft, target = caches[: self._num_draft_caches], caches[self._num_draft_caches :]
        tokens, draft = self.propose(spec, inputs, draft)
        outputs, target = self.target_model.step(spec, {**inputs, "input_ids": tokens}, target)
        kept = accept(tokens, outputs["tokens"], inputs["position_ids"])
        return {**outputs, "tokens": kept.tokens}, [*draft, *target]

    def propose(
        self, spec: GraphSpec, inputs: Mapping[str, Tensor], caches: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Each row's last token and those the draft model chooses after it [B, K], and its caches.

        It samples with the random numbers that the target has for the same places. What it would
        choose after the last proposal is dropped; its cache holds all K.
        """
        token, tokens = inputs["input_ids"][:, :1], []
        for place in range(spec.length):
            tokens.append(token)
            of_place = {**at_place(inputs, place), "input_ids": token}
            outputs, caches = self.draft_step(decoding(spec), of_place, caches)
            token = outputs["tokens"].unsqueeze(1)
        return torch.cat(tokens, dim=1), list(caches)


def decoding(spec: GraphSpec) -> GraphSpec:
    """The steps of a draft model that proposes within graph `spec`: a token per row each."""
    return replace(spec, phase=Phase.DECODE, length=spec.num_slots, context=0, proposes=False)


def at_place(inputs: Mapping[str, Tensor], place: int) -> dict[str, Tensor]:
    """The inputs of such a step for the tokens in one column, but for their ids."""
    of_place = {**inputs, "position_ids": inputs["position_ids"][:, place : place + 1]}
    if "uniform" in inputs:
        of_place["uniform"] = inputs["uniform"][:, place]
    return of_place


def accept(tokens: Tensor, chosen: Tensor, position_ids: Tensor) -> Accepted:
    """What is kept of `tokens`, each row's last one and those proposed where it has room.

    Shapes: all int32 [B, K]; chosen: what the target chooses after each.
    """
    proposed = torch.where(position_ids[:, 1:] >= 0, tokens[:, 1:], NO_TOKEN)
    return accept_matching(proposed, chosen)


def fuse(draft: StepModel, target: StepModel, phase: Phase, draft_degree: int) -> DraftAndTarget:
    """The module of one phase."""
    make = ProposeAndVerify if phase is Phase.VERIFY else DraftAndTarget
    return make(draft, target, draft_degree)

"""A draft head and its target in one graph: the state is their caches, and some features.

The head's pair number i is the target's features of token i and the token that follows, and is at
position i of its cache. Every step computes the pairs of its tokens with the target's features.
Legend: B rows, S new tokens per row, K tokens per row of a step that proposes, F elements of
features, H of those of the head itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nxdi.graph.plan import FEATURES, IS_OWN, GraphSpec
from nxdi.modules.speculation.fused import (
    DraftAndTarget,
    Step,
    StepModel,
    accept,
    at_place,
    decoding,
)
from nxdi.modules.speculation.last_features import LastFeatures
from nxdi.types import Phase


class HeadAndTarget(DraftAndTarget):
    """Sequences that go on: the first pair of a step has the features that are kept.

    A sequence that begins has none, and so no pair for its first token.
    """

    def __init__(
        self, head: StepModel, target: StepModel, draft_degree: int, last: LastFeatures
    ) -> None:
        super().__init__(head, target, draft_degree)
        self._last = last

    def cache_shapes(self) -> list[tuple[int, ...]]:
        """Shape of every tensor of state on one rank: both caches, and the features kept."""
        return [*super().cache_shapes(), self._last.shape]

    def cache_dtypes(self) -> list[torch.dtype]:
        return [*super().cache_dtypes(), self._last.dtype]

    def step(self, spec: GraphSpec, inputs: Mapping[str, Tensor], caches: Sequence[Tensor]) -> Step:
        head, target, last = self.parts(caches)
        outputs, target = self.target_model.step(spec, inputs, target)
        features = outputs.pop(FEATURES)
        _, head = self.draft_step(spec, self.pairs(inputs, features, last), head)
        last = self._last.keep(last, features, inputs["position_ids"], inputs)
        return outputs, [*head, *target, last]

    def parts(self, state: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The head's caches, the target's, and the features kept."""
        *caches, last = state
        return caches[: self._num_draft_caches], caches[self._num_draft_caches :], last

    def pairs(
        self, inputs: Mapping[str, Tensor], features: Tensor, last: Tensor
    ) -> dict[str, Tensor]:
        """The head's inputs for the tokens of a step, whose features are [B, S, F]."""
        before = self._last.before(last, inputs)
        return _pairs(inputs, torch.cat([before, features[:, :-1]], dim=1))


class HeadAndPrompt(HeadAndTarget):
    """Sequences that begin: their pairs are in line from the first column on."""

    def pairs(
        self, inputs: Mapping[str, Tensor], features: Tensor, last: Tensor
    ) -> dict[str, Tensor]:
        return _pairs({**inputs, **_following(inputs)}, features)


class HeadProposes(HeadAndTarget):
    """The head proposes token after token, the target looks at all of them at once.

    Input tokens and positions are as for `ProposeAndVerify`.
    """

    def step(self, spec: GraphSpec, inputs: Mapping[str, Tensor], caches: Sequence[Tensor]) -> Step:
        head, target, last = self.parts(caches)
        tokens, head = self.propose(spec, inputs, head, self._last.before(last, inputs))
        given = {**inputs, "input_ids": tokens}
        outputs, target = self.target_model.step(spec, given, target)
        features = outputs.pop(FEATURES)
        kept = accept(tokens, outputs["tokens"], inputs["position_ids"])
        # Once more the pairs for which the head had only features of its own.
        pairs = _pairs({**at_place(given, 0), **_following(given)}, features)
        _, head = self.draft_step(spec, pairs, head)
        places = torch.arange(spec.length, dtype=torch.int32, device=tokens.device)
        is_kept = places < kept.num_tokens.unsqueeze(1)
        positions = torch.where(is_kept, inputs["position_ids"], -1)
        last = self._last.keep(last, features, positions, inputs)
        return {**outputs, "tokens": kept.tokens}, [*head, *target, last]

    def propose(
        self,
        spec: GraphSpec,
        inputs: Mapping[str, Tensor],
        caches: Sequence[Tensor],
        features: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """Each row's last token and those the head chooses after it [B, K], and its caches.

        The first follows from the target's `features` [B, 1, F] of the token before, the others
        from those of the head.
        """
        tokens = [inputs["input_ids"][:, :1]]
        is_own = 0
        for place in range(spec.length - 1):
            pair = _pairs({**at_place(inputs, place), "input_ids": tokens[-1]}, features, is_own)
            outputs, caches = self.draft_step(decoding(spec), pair, caches)
            tokens.append(outputs["tokens"].unsqueeze(1))
            own = outputs[FEATURES]
            features, is_own = F.pad(own, (0, self._last.size - own.shape[-1])), 1
        return torch.cat(tokens, dim=1), list(caches)


def _pairs(inputs: Mapping[str, Tensor], features: Tensor, is_own: int = 0) -> dict[str, Tensor]:
    """The inputs of a head for tokens [B, S], each with the features [B, S, F] of the one before.

    The first token of a sequence is padding: it follows none.
    """
    return {
        **inputs,
        "position_ids": (inputs["position_ids"] - 1).clamp(min=-1),
        FEATURES: features,
        IS_OWN: torch.full_like(inputs["input_ids"], is_own),
    }


def _following(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ids and positions of the token after each of a row's tokens; of the last one padding."""
    ids, positions = inputs["input_ids"][:, 1:], inputs["position_ids"][:, 1:]
    return {"input_ids": F.pad(ids, (0, 1)), "position_ids": F.pad(positions, (0, 1), value=-1)}


def fuse_head(
    head: StepModel, target: StepModel, phase: Phase, draft_degree: int, last: LastFeatures
) -> HeadAndTarget:
    """The module of one phase."""
    make = {Phase.PREFILL: HeadAndPrompt, Phase.VERIFY: HeadProposes}.get(phase, HeadAndTarget)
    return make(head, target, draft_degree, last)

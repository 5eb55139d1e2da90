"""Draft and target in one step, on models simple enough to follow by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nxdi.graph.plan import GraphSpec
from nxdi.modules.speculation.acceptance import NO_TOKEN
from nxdi.modules.speculation.fused import DraftAndTarget, ProposeAndVerify, fuse
from nxdi.types import Phase

LENGTH, ROWS, SLOTS = 4, 3, 16
SPEC = GraphSpec(Phase.VERIFY, ROWS, LENGTH, (), ("tokens",), context=SLOTS, proposes=True)


class Adding(nn.Module):
    """After a token comes one that is `step` larger, plus the random number of its place.

    Its cache [B, SLOTS] holds the tokens by position.
    """

    def __init__(self, step: int) -> None:
        super().__init__()
        self.size = step
        self.seen: list[tuple[Phase, int, list[list[int]]]] = []

    def cache_shapes(self) -> list[tuple[int, ...]]:
        return [(ROWS, SLOTS)] * self.size

    def cache_dtypes(self) -> list[torch.dtype]:
        return [(torch.float32, torch.float16)[self.size - 1]] * self.size

    def step(
        self, spec: GraphSpec, inputs: Mapping[str, Tensor], caches: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        ids, positions = inputs["input_ids"], inputs["position_ids"]
        self.seen.append((spec.phase, spec.num_slots, positions.tolist()))
        new = [cache.clone() for cache in caches]
        for cache in new:
            for row, column in (positions >= 0).nonzero().tolist():
                cache[row, positions[row, column]] = ids[row, column].to(cache.dtype)
        tokens = ids + self.size
        if "uniform" in inputs:
            tokens = tokens + inputs["uniform"].reshape(tokens.shape).int()
        last = tokens if spec.phase is Phase.VERIFY else tokens[:, -1]
        return {"tokens": last.int()}, new


def step(module: DraftAndTarget, spec: GraphSpec, **inputs: list[list[int]]) -> list[Tensor]:
    """Tokens, and then the caches."""
    shapes, dtypes = module.cache_shapes(), module.cache_dtypes()
    caches = [torch.full(s, -9, dtype=d) for s, d in zip(shapes, dtypes, strict=True)]
    tensors = {name: torch.tensor(rows, dtype=torch.int32) for name, rows in inputs.items()}
    outputs, new = module.step(spec, tensors, caches)
    assert all(bool((cache == -9).all()) for cache in caches)  # nothing in place
    return [outputs["tokens"], *new]


PLACES = [[5, 6, 7, 8], [0, 1, -1, -1], [9, -1, -1, -1]]
TOKENS = [[10, 0, 0, 0], [20, 0, 0, 0], [30, 0, 0, 0]]


def test_a_twin_is_kept_as_far_as_there_is_room() -> None:
    twins = ProposeAndVerify(Adding(1), Adding(1), 1)
    found, *caches = step(twins, SPEC, input_ids=TOKENS, position_ids=PLACES)
    assert found.tolist() == [
        [11, 12, 13, 14],
        [21, 22, NO_TOKEN, NO_TOKEN],
        [31, NO_TOKEN, NO_TOKEN, NO_TOKEN],
    ]
    for cache in caches:  # of both: also the last proposal is in that of the draft
        assert cache[0, 5:9].tolist() == [10, 11, 12, 13]
        assert cache[1, :2].tolist() == [20, 21]
        assert int((cache != -9).sum()) == 4 + 2 + 1


def test_a_wrong_draft_brings_one_token() -> None:
    module = ProposeAndVerify(Adding(2), Adding(1), 1)
    found, *caches = step(module, SPEC, input_ids=TOKENS, position_ids=PLACES)
    assert found.tolist() == [[n, *[NO_TOKEN] * 3] for n in (11, 21, 31)]
    assert [cache.dtype for cache in caches] == [torch.float16, torch.float16, torch.float32]
    assert all(cache[0, 5:9].tolist() == [10, 12, 14, 16] for cache in caches)


def test_both_use_the_random_number_of_each_place() -> None:
    uniform = [[1, 0, 2, 5], [3, 4, 0, 0], [6, 0, 0, 0]]
    twins = ProposeAndVerify(Adding(1), Adding(1), 1)
    found, *_ = step(twins, SPEC, input_ids=TOKENS, position_ids=PLACES, uniform=uniform)
    assert found[0].tolist() == [12, 13, 16, 22]
    assert found[1, :2].tolist() == [24, 29]


def test_the_draft_decodes_while_the_target_verifies() -> None:
    draft, target = Adding(1), Adding(1)
    step(ProposeAndVerify(draft, target, 1), SPEC, input_ids=TOKENS, position_ids=PLACES)
    columns = [[[row[place]] for row in PLACES] for place in range(LENGTH)]
    assert draft.seen == [(Phase.DECODE, SLOTS, column) for column in columns]
    assert target.seen == [(Phase.VERIFY, SLOTS, PLACES)]


@pytest.mark.parametrize("phase", [Phase.PREFILL, Phase.DECODE, Phase.EXTEND])
def test_in_other_phases_both_compute_the_same_tokens(phase: Phase) -> None:
    module = fuse(Adding(2), Adding(1), phase, 1)
    spec = replace(SPEC, phase=phase, proposes=False)
    ids = [[1, 2], [3, 4], [5, 6]]
    found, *caches = step(module, spec, input_ids=ids, position_ids=[[0, 1]] * 3)
    assert found.tolist() == [3, 5, 7]  # the target's
    assert all(cache[:, :2].tolist() == ids for cache in caches)


def test_verify_is_the_phase_that_proposes() -> None:
    assert type(fuse(Adding(1), Adding(1), Phase.VERIFY, 1)) is ProposeAndVerify
    assert type(fuse(Adding(1), Adding(1), Phase.DECODE, 1)) is DraftAndTarget

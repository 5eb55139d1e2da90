"""A head and its target in one step, on models simple enough to follow by hand."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nxdi.graph.plan import FEATURES, IS_OWN, GraphSpec
from nxdi.modules.speculation.fused_head import (
    HeadAndPrompt,
    HeadAndTarget,
    HeadProposes,
    fuse_head,
)
from nxdi.modules.speculation.last_features import BlockFeatures, LastFeatures, RowFeatures
from nxdi.types import Phase

ROWS, SLOTS, LENGTH, BLOCK, VOCAB = 3, 24, 4, 4, 11
NUM_BLOCKS = ROWS * SLOTS // BLOCK
SIZE = 2
LAYOUTS: dict[str, LastFeatures] = {
    "rows": RowFeatures(ROWS, SIZE, torch.float32),
    "blocks": BlockFeatures(NUM_BLOCKS, SIZE, torch.float32, BLOCK),
}
Rows = Sequence[Sequence[int]]


class Stub(nn.Module):
    """Remembers what it is given for each position of a row, in a cache of rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.phases: list[Phase] = []

    def cache_shapes(self) -> list[tuple[int, ...]]:
        return [(ROWS, SLOTS, self.width)]

    def cache_dtypes(self) -> list[torch.dtype]:
        return [torch.float32]

    def remember(
        self, spec: GraphSpec, inputs: Mapping[str, Tensor], caches: Sequence[Tensor], given: Tensor
    ) -> list[Tensor]:
        self.phases.append(spec.phase)
        rows, positions = cache_rows(inputs), inputs["position_ids"]
        assert int(positions.min()) >= -1
        new = caches[0].clone()
        for row, column in (positions >= 0).nonzero().tolist():
            new[rows[row], positions[row, column]] = given[row, column]
        return [new]


def cache_rows(inputs: Mapping[str, Tensor]) -> list[int]:
    """Blocks are dealt out so that the first one of a row says which it is."""
    if "seq_ids" in inputs:
        return [int(row) for row in inputs["seq_ids"]]
    return [int(table[0]) % ROWS for table in inputs["block_table"]]


class Target(Stub):
    """Its features of a token are the token and its position; what it chooses follows from both."""

    def step(
        self, spec: GraphSpec, inputs: Mapping[str, Tensor], caches: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        ids, positions = inputs["input_ids"], inputs["position_ids"]
        chosen = choose(ids, positions)
        features = torch.stack([ids, positions], dim=-1).float()
        last = chosen if spec.phase is Phase.VERIFY else chosen[:, -1]
        new = self.remember(spec, inputs, caches, features[..., :1])
        return {"tokens": last.int(), FEATURES: features}, new


class Head(Stub):
    """Says what the target says, but after every pair whose number is a multiple of `wrong`."""

    def __init__(self, wrong: int = 1000) -> None:
        super().__init__(4)
        self.wrong = wrong

    def step(
        self, spec: GraphSpec, inputs: Mapping[str, Tensor], caches: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        ids, positions = inputs["input_ids"], inputs["position_ids"]
        assert inputs[FEATURES].shape == (*ids.shape, SIZE)
        given = [ids.unsqueeze(-1), inputs[FEATURES], inputs[IS_OWN].unsqueeze(-1)]
        new = self.remember(spec, inputs, caches, torch.cat(given, dim=-1))
        tokens = choose(ids, positions + 1) + ((positions + 1) % self.wrong == 0).int()
        if "uniform" in inputs:
            tokens = tokens + inputs["uniform"].unsqueeze(1).int()
        own = -1.0 - positions[:, -1:, None]  # of another size than the target's
        return {"tokens": tokens[:, -1].int() % VOCAB, FEATURES: own}, new


def choose(ids: Tensor, positions: Tensor) -> Tensor:
    return (ids * 3 + positions) % VOCAB


class Steps:
    """Runs graphs of a head and its target over the same state."""

    def __init__(self, layout: str, wrong: int = 1000) -> None:
        self.layout, self.head, self.target = layout, Head(wrong), Target(1)
        self.tables = torch.arange(NUM_BLOCKS, dtype=torch.int32).view(-1, ROWS).T.contiguous()
        module = self.module(Phase.DECODE)
        sizes = zip(module.cache_shapes(), module.cache_dtypes(), strict=True)
        self.state = [torch.full(shape, -9.0, dtype=dtype) for shape, dtype in sizes]

    def module(self, phase: Phase) -> HeadAndTarget:
        return fuse_head(self.head, self.target, phase, 1, LAYOUTS[self.layout])

    def run(self, phase: Phase, rows: Sequence[int], ids: Rows, positions: Rows) -> Tensor:
        """The tokens of a step; rows: which of the cache."""
        spec = GraphSpec(phase, len(rows), len(ids[0]), (), ("tokens",), SLOTS)
        inputs = {"input_ids": int32(ids), "position_ids": int32(positions)}
        if self.layout == "rows":
            inputs["seq_ids"] = int32(rows)
        else:
            inputs["block_table"] = self.tables[list(rows)]
        before = [tensor.clone() for tensor in self.state]
        outputs, new = self.module(phase).step(spec, inputs, self.state)
        assert all(torch.equal(*both) for both in zip(self.state, before, strict=True))
        self.state = new
        assert FEATURES not in outputs
        return outputs["tokens"]

    def check(self, row: int, tokens: Sequence[int]) -> None:
        """The head has every pair of the tokens that are computed, with the target's features."""
        pairs = self.state[0][row, : len(tokens) - 1].tolist()
        assert pairs == [
            [following, token, position, 0]
            for position, (token, following) in enumerate(pairwise(tokens))
        ]
        assert self.state[1][row, : len(tokens), 0].tolist() == list(tokens)


def int32(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def grown(tokens: Sequence[int], most: int) -> list[int]:
    """A sequence as the target goes on with it."""
    found = list(tokens)
    while len(found) < most:
        found.append((found[-1] * 3 + len(found) - 1) % VOCAB)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_head_that_is_right_is_kept_as_far_as_there_is_room(layout: str) -> None:
    steps = Steps(layout)
    prompts = [[4, 5, 6], [1], [2, 2, 2, 2, 2, 2, 2]]
    ids = [[*prompt, *[0] * (8 - len(prompt))] for prompt in prompts]
    places = [[i if i < len(prompt) else -1 for i in range(8)] for prompt in prompts]
    steps.run(Phase.PREFILL, [0, 1, 2], ids, places)
    whole = [grown(prompt, 20) for prompt in prompts]
    last = [[whole[row][len(prompt)], 0, 0, 0] for row, prompt in enumerate(prompts)]
    room = [[3, 4, 5, 6], [1, 2, -1, -1], [7, -1, -1, -1]]
    found = steps.run(Phase.VERIFY, [0, 1, 2], last, room)
    assert found.tolist() == [
        whole[0][4:8],
        [*whole[1][2:4], -1, -1],
        [whole[2][8], -1, -1, -1],
    ]
    for row, length in enumerate((7, 3, 8)):
        steps.check(row, whole[row][:length])
    # Three proposals, and once more what follows from the target's features.
    assert steps.head.phases == [Phase.PREFILL, *[Phase.DECODE] * 3, Phase.VERIFY]


@pytest.mark.parametrize("wrong", [1, 2, 3, 1000])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_head_keeps_step_with_its_target(layout: str, wrong: int) -> None:
    """Whatever steps come, with any rows, and also where they start over."""
    draw, steps = random.Random(wrong), Steps(layout, wrong)
    sequences: dict[int, list[int]] = {}
    for _ in range(120):
        rows = draw.sample(range(ROWS), draw.randint(1, ROWS))
        full = [row for row in rows if len(sequences.get(row, ())) > SLOTS - 4]
        new = [row for row in rows if row not in sequences or row in full]
        old = [row for row in rows if row not in new]
        for row in new:
            sequences[row] = [draw.randrange(VOCAB) for _ in range(draw.randint(1, 6))]
        if new:
            prompt(steps, {row: sequences[row] for row in new}, draw)
        if old:
            go_on(steps, {row: sequences[row] for row in old}, draw)
        for row, tokens in sequences.items():
            steps.check(row, tokens)


def prompt(steps: Steps, prompts: Mapping[int, list[int]], draw: random.Random) -> None:
    """In one piece, or in two."""
    first = draw.choice([Phase.PREFILL, Phase.EXTEND])
    cut = {row: draw.randint(1, len(tokens)) for row, tokens in prompts.items()}
    for phase, part in ((first, 0), (Phase.EXTEND, 1)):
        pieces = {
            row: list(range(*((0, cut[row]) if part == 0 else (cut[row], len(tokens)))))
            for row, tokens in prompts.items()
        }
        pieces = {row: places for row, places in pieces.items() if places}
        if pieces:
            ids = [[*[prompts[row][place] for place in pieces[row]]] for row in pieces]
            width = 1 + max(map(len, ids))
            steps.run(
                phase,
                list(pieces),
                [[*row, *[0] * (width - len(row))] for row in ids],
                [[*row, *[-1] * (width - len(row))] for row in pieces.values()],
            )


def go_on(steps: Steps, sequences: Mapping[int, list[int]], draw: random.Random) -> None:
    """By one token, or by proposals; graphs of a cache of rows have all of them."""
    phase = draw.choice([Phase.DECODE, Phase.VERIFY])
    width = 1 if phase is Phase.DECODE else LENGTH
    everyone = range(ROWS) if steps.layout == "rows" else list(sequences)
    ids, places = [], []
    for row in everyone:
        tokens, room = sequences.get(row, []), draw.randint(1, width)
        following = grown(tokens, len(tokens) + 1)[-1] if tokens else 0
        ids.append([following, *[0] * (width - 1)])
        places.append([len(tokens) + i if tokens and i < room else -1 for i in range(width)])
    found = steps.run(phase, list(everyone), ids, places).view(len(ids), -1)
    for index, row in enumerate(everyone):
        if row in sequences:
            kept = int((found[index] >= 0).sum())
            assert kept == 1 or phase is Phase.VERIFY
            sequences[row] += [ids[index][0], *found[index, : kept - 1].tolist()]


def test_a_prefix_that_another_row_has_computed_brings_its_features() -> None:
    """Its two blocks begin a second row, which goes on with tokens of its own."""
    steps = Steps("blocks")
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    steps.run(Phase.PREFILL, [0], [tokens], [list(range(9))])
    steps.tables[1, :2] = steps.tables[0, :2]
    steps.run(Phase.EXTEND, [1], [[7, 6, 0]], [[8, 9, -1]])
    assert steps.state[0][0, 7].tolist() == [7, 8, 7, 0]  # also where the block is the other's


def test_each_place_has_its_random_number() -> None:
    steps = Steps("rows")
    steps.run(Phase.PREFILL, [0], [[4, 5]], [[0, 1]])
    module, spec = steps.module(Phase.VERIFY), GraphSpec(Phase.VERIFY, 1, 3, (), ("tokens",), SLOTS)
    inputs = {"input_ids": int32([[6, 0, 0]]), "position_ids": int32([[2, 3, 4]])}
    inputs |= {"seq_ids": int32([0]), "uniform": int32([[2, 1, 0]])}
    assert isinstance(module, HeadProposes)
    proposed, _ = module.propose(spec, inputs, steps.state[:1], torch.zeros(1, 1, SIZE))
    first = (6 * 3 + 2 + 2) % VOCAB
    assert proposed.tolist() == [[6, first, (first * 3 + 3 + 1) % VOCAB]]


def test_each_phase_has_its_module() -> None:
    made = {phase: type(Steps("rows").module(phase)) for phase in Phase}
    assert made == {
        Phase.PREFILL: HeadAndPrompt,
        Phase.EXTEND: HeadAndTarget,
        Phase.DECODE: HeadAndTarget,
        Phase.VERIFY: HeadProposes,
    }


def test_what_is_kept_is_part_of_the_state() -> None:
    module = Steps("rows").module(Phase.DECODE)
    assert module.cache_shapes() == [(ROWS, SLOTS, 4), (ROWS, SLOTS, 1), (ROWS + 1, SIZE)]
    assert module.cache_dtypes() == [torch.float32] * 3

"""Rows: what goes in through `pad_step` comes out through `unpad_step`, in the caller's order."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nxdi.config import NeuronConfig
from nxdi.graph.padding import StepBatch, num_graph_rows, pad_step, unpad_step
from nxdi.graph.plan import plan_graphs
from nxdi.graph.rows import packed_left, phase_of, row_positions
from nxdi.types import Phase

ROWS, LONGEST = 5, 9
PLAN = plan_graphs(NeuronConfig(seq_len=16, max_context_length=LONGEST, batch_size=ROWS))


@st.composite
def batches(draw: st.DrawFn) -> StepBatch:
    """Prompts, or running sequences, for some of the cache rows in any order."""
    seq_ids = draw(st.permutations(range(ROWS)))[: draw(st.integers(1, ROWS))]
    phase = draw(st.sampled_from([Phase.PREFILL, Phase.DECODE]))
    if phase is Phase.DECODE:
        starts = draw(st.lists(st.integers(1, 15), min_size=len(seq_ids), max_size=len(seq_ids)))
        positions = torch.tensor(starts).unsqueeze(1)
    else:
        sizes = st.integers(1, LONGEST)
        lengths = draw(st.lists(sizes, min_size=len(seq_ids), max_size=len(seq_ids)))
        counted = torch.arange(max(lengths)).expand(len(seq_ids), -1)
        positions = torch.where(counted < torch.tensor(lengths).unsqueeze(1), counted, -1)
    ids = torch.arange(1, positions.numel() + 1).view(positions.shape)
    return StepBatch(phase, ids, positions.int(), torch.tensor(seq_ids, dtype=torch.int32))


@given(batches())
def test_every_row_arrives_and_returns(batch: StepBatch) -> None:
    spec = PLAN.choose(batch.phase, num_graph_rows(batch), batch.length)
    padded = pad_step(batch, spec)
    assert {name: tuple(t.shape) for name, t in padded.items()} == spec.input_shapes()
    back = unpad_step(padded, batch)
    width = batch.input_ids.shape[1]
    real = batch.position_ids >= 0
    assert torch.equal(back["position_ids"][:, :width], batch.position_ids)
    assert torch.equal(back["input_ids"][:, :width][real], batch.input_ids[real].int())
    assert batch.seq_ids is not None
    assert torch.equal(back["seq_ids"], batch.seq_ids)
    assert int((padded["position_ids"] >= 0).sum()) == int(real.sum())


@st.composite
def padded_prompts(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[list[int]]]:
    """input_ids and mask with padding on both sides, and the prompts themselves."""
    rows = draw(
        st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=6), min_size=1, max_size=4)
    )
    width = max(map(len, rows)) + draw(st.integers(0, 3))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width)
    for row, tokens in enumerate(rows):
        start = draw(st.integers(0, width - len(tokens)))
        ids[row, start : start + len(tokens)] = torch.tensor(tokens)
        mask[row, start : start + len(tokens)] = 1
    return ids, mask, rows


@given(padded_prompts())
def test_padding_on_either_side_says_the_same(
    prompts: tuple[Tensor, Tensor, list[list[int]]],
) -> None:
    ids, mask, rows = prompts
    packed, positions = packed_left(ids, row_positions(ids, mask, None))
    assert packed.shape[1] == max(map(len, rows))
    assert phase_of(positions) is Phase.PREFILL
    for row, tokens in enumerate(rows):
        assert packed[row, : len(tokens)].tolist() == tokens
        expected = list(range(len(tokens))) + [-1] * (packed.shape[1] - len(tokens))
        assert positions[row].tolist() == expected

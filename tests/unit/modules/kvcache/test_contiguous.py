from __future__ import annotations

import torch
from torch import Tensor

from nxdi.modules.kvcache import ContiguousCache
from nxdi.modules.kvcache.spec import Attended, CacheState, StepPositions
from nxdi.types import Phase
from tiny_modules import drawn, empty_cache

LAYOUT = ContiguousCache(num_kv_heads=2, max_len=6, head_dims=(4, 4))
SCRATCH = 6


def append(
    state: CacheState,
    phase: Phase,
    positions: list[list[int]],
    rows: list[int],
    num_slots: int = 6,
    seed: int = 0,
) -> tuple[CacheState, Attended, Tensor, Tensor]:
    k, v = drawn(2, len(positions), 2, len(positions[0]), 4, seed=seed)
    where = StepPositions(
        phase,
        torch.tensor(positions, dtype=torch.int32),
        torch.tensor(rows, dtype=torch.int32),
        num_slots,
    )
    return (*LAYOUT.append(state, k, v, where), k, v)


def written(state: CacheState) -> list[tuple[int, int]]:
    """(row, slot) of everything that has been written."""
    return [(row, slot) for row, slot in (~state.k[:, 0, :, 0].isnan()).nonzero().tolist()]


def test_shape_has_one_slot_for_padding() -> None:
    assert LAYOUT.shapes(3) == [(3, 2, 7, 4)] * 2


def test_prefill_writes_by_position_and_attends_to_itself() -> None:
    state, attended, k, v = append(
        empty_cache(LAYOUT, 3), Phase.PREFILL, [[0, 1, 2], [0, 1, -1]], rows=[2, 0]
    )
    assert written(state) == [(0, 0), (0, 1), (0, SCRATCH), (2, 0), (2, 1), (2, 2)]
    assert torch.equal(state.k[2, :, :3], k[0])
    assert torch.equal(state.v[0, :, :2], v[1, :, :2])
    assert attended.keys is k
    assert attended.values is v
    assert attended.positions.tolist() == [[0, 1, 2], [0, 1, -1]]


def test_decode_writes_one_token_and_attends_to_the_bucket() -> None:
    first, *_ = append(empty_cache(LAYOUT, 2), Phase.PREFILL, [[0, 1], [0, 1]], rows=[0, 1])
    state, attended, k, _ = append(first, Phase.DECODE, [[2], [-1]], rows=[0, 1], num_slots=4)
    assert written(state) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, SCRATCH)]
    assert torch.equal(state.k[0, :, 2], k[0, :, 0])
    for got, cache in ((attended.keys, state.k), (attended.values, state.v)):
        torch.testing.assert_close(got, cache[:, :, :4], rtol=0, atol=0, equal_nan=True)
    assert attended.positions.tolist() == [[0, 1, 2, 3]]


def test_decode_of_fewer_rows_attends_to_those() -> None:
    state, attended, *_ = append(empty_cache(LAYOUT, 3), Phase.DECODE, [[0]], rows=[0])
    assert attended.keys.shape == (1, 2, 6, 4)
    assert written(state) == [(0, 0)]


def test_no_bucket_reaches_the_scratch_slot() -> None:
    _, attended, *_ = append(
        empty_cache(LAYOUT, 1), Phase.DECODE, [[-1]], rows=[0], num_slots=LAYOUT.max_len
    )
    assert bool(attended.keys.isnan().all())


def test_append_changes_nothing_in_place() -> None:
    state = empty_cache(LAYOUT, 1)
    append(state, Phase.PREFILL, [[0, 1]], rows=[0])
    assert written(state) == []

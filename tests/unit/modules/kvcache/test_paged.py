"""Blocks that rows own in any order, and what a step sees through its table."""

from __future__ import annotations

import pytest
import torch

from nxdi.modules.kvcache import PagedCache
from nxdi.modules.kvcache.spec import Attended, CacheState, StepPositions
from nxdi.types import Phase
from tiny_modules import empty_cache

SIZE, BLOCKS = 4, 6
LAYOUT = PagedCache(num_kv_heads=1, num_blocks=BLOCKS, block_size=SIZE, head_dims=(2, 2))


def append(
    state: CacheState,
    phase: Phase,
    positions: list[list[int]],
    table: list[list[int]],
    num_slots: int = 8,
) -> tuple[CacheState, Attended]:
    """Keys are 100 times the row plus the position, so that slots say what they hold."""
    where = torch.tensor(positions, dtype=torch.int32)
    rows = 100 * torch.arange(len(positions))[:, None]
    k = (where + rows).float()[:, None, :, None].expand(-1, 1, -1, 2)
    blocks = torch.tensor(table, dtype=torch.int32)
    return LAYOUT.append(state, k, -k, StepPositions(phase, where, None, num_slots, blocks))


def held(state: CacheState, block: int) -> list[float]:
    return state.k[block, 0, :, 0].nan_to_num(-9).tolist()


def test_shape_has_one_block_for_padding() -> None:
    assert LAYOUT.shapes(3) == [(BLOCKS + 1, 1, SIZE, 2)] * 2


def test_tokens_go_where_the_table_says() -> None:
    positions = [[0, 1, 2, 3, 4, 5], [0, 1, 2, -1, -1, -1]]
    state, attended = append(empty_cache(LAYOUT, 1), Phase.PREFILL, positions, [[4, 1], [2, -1]])
    assert held(state, 4) == [0, 1, 2, 3]
    assert held(state, 1) == [4, 5, -9, -9]
    assert held(state, 2) == [100, 101, 102, -9]
    for untouched in (0, 3, 5):
        assert held(state, untouched) == [-9] * SIZE
    assert attended.keys.shape[2] == 6  # a prefill sees its own tokens


def test_a_step_sees_its_blocks_in_order() -> None:
    state, _ = append(empty_cache(LAYOUT, 1), Phase.PREFILL, [[0, 1, 2, 3, 4]], [[4, 1]])
    state, attended = append(state, Phase.DECODE, [[5]], [[4, 1]])
    assert attended.keys[0, 0, :6, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert attended.values[0, 0, :6, 1].tolist() == [0, -1, -2, -3, -4, -5]
    assert attended.positions.tolist() == [list(range(8))]
    _, attended = append(state, Phase.EXTEND, [[6, 7, -1]], [[4, 1]])
    assert attended.keys[0, 0, :, 0].tolist() == list(range(8))


def test_what_a_step_sees_is_there_in_blocks_as_well() -> None:
    state, attended = append(empty_cache(LAYOUT, 1), Phase.PREFILL, [[0, 1, 2, 3, 4]], [[4, 1, -1]])
    assert attended.stored is None
    state, attended = append(state, Phase.DECODE, [[5]], [[4, 1, -1]])
    assert attended.stored is not None
    assert attended.stored.k is state.k
    assert attended.stored.v is state.v
    assert attended.stored.blocks is not None
    assert attended.stored.blocks.tolist() == [[4, 1]]
    _, attended = append(state, Phase.DECODE, [[6]], [[4, -1, -1]], num_slots=12)
    assert attended.stored is not None
    assert attended.stored.blocks is not None
    assert attended.stored.blocks.tolist() == [[4, BLOCKS, BLOCKS]]
    _, attended = append(state, Phase.DECODE, [[6]], [[4, 1, -1]], num_slots=7)
    assert attended.stored is None


def test_only_the_slots_of_the_bucket_are_read() -> None:
    state, _ = append(empty_cache(LAYOUT, 1), Phase.PREFILL, [[0, 1, 2, 3, 4]], [[4, 1]])
    _, attended = append(state, Phase.DECODE, [[5]], [[4, 1]], num_slots=6)
    assert attended.keys.shape == (1, 1, 6, 2)


@pytest.mark.parametrize("table", [[[-1, -1]], [[3, -1]]])
def test_padding_and_missing_blocks_touch_nothing(table: list[list[int]]) -> None:
    before = empty_cache(LAYOUT, 1)
    state, _ = append(before, Phase.DECODE, [[-1]], table)
    for block in range(BLOCKS):
        assert held(state, block) == held(before, block)


def test_a_shared_block_is_read_by_both() -> None:
    state, _ = append(empty_cache(LAYOUT, 1), Phase.PREFILL, [[0, 1, 2, 3]], [[5]], num_slots=4)
    _, attended = append(state, Phase.DECODE, [[4], [4]], [[5, 0], [5, 2]])
    assert attended.keys[:, 0, :4, 0].tolist() == [[0, 1, 2, 3]] * 2
    assert attended.keys[:, 0, 4, 0].tolist() == [4, 104]

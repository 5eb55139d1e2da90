from __future__ import annotations

from functools import partial

import pytest

from nxdi.modules.kvcache import ChunkedCache
from nxdi.modules.kvcache.spec import CacheState
from nxdi.types import Phase
from tiny_modules import append_positions, empty_cache, held_positions

CHUNK = 4
LAYOUT = ChunkedCache(num_kv_heads=1, size=CHUNK, head_dims=(2, 2))


append = partial(append_positions, LAYOUT)
slots = partial(held_positions, LAYOUT)


def prefilled(length: int) -> CacheState:
    state, _ = append(empty_cache(LAYOUT, 1), Phase.PREFILL, [list(range(length))])
    return state


@pytest.mark.parametrize(
    ("length", "held"),
    [
        (1, [0, -9, -9, -9]),
        (4, [0, 1, 2, 3]),
        (5, [4, -9, -9, -9]),
        (7, [4, 5, 6, -9]),
        (8, [4, 5, 6, 7]),
        (9, [8, -9, -9, -9]),
    ],
)
def test_a_prefill_keeps_its_last_chunk(length: int, held: list[int]) -> None:
    assert slots(prefilled(length)) == held


def test_a_prefill_attends_to_all_of_itself() -> None:
    _, attended = append(empty_cache(LAYOUT, 1), Phase.PREFILL, [[0, 1, 2, 3, 4, 5, -1]])
    assert attended.positions.tolist() == [[0, 1, 2, 3, 4, 5, -1]]
    assert attended.keys.shape == (1, 1, 7, 2)


def test_decoding_into_the_next_chunk_hides_the_last_one() -> None:
    state, seen = prefilled(3), []
    for position in range(3, 10):
        state, attended = append(state, Phase.DECODE, [[position]])
        seen.append(attended.positions[0].tolist())
    assert seen == [
        [0, 1, 2, 3],
        [4, -1, -1, -1],
        [4, 5, -1, -1],
        [4, 5, 6, -1],
        [4, 5, 6, 7],
        [8, -1, -1, -1],
        [8, 9, -1, -1],
    ]
    assert slots(state) == [8, 9, 6, 7]


def test_rows_in_different_chunks_with_padding() -> None:
    prompts = [[0, 1, 2, 3, 4, 5], [0, 1, -1, -1, -1, -1], [-1] * 6]
    state, _ = append(empty_cache(LAYOUT, 3), Phase.PREFILL, prompts)
    assert [slots(state, row) for row in range(3)] == [[4, 5, -9, -9], [0, 1, -9, -9], [-9] * 4]
    state, attended = append(state, Phase.DECODE, [[6], [2], [-1]])
    assert attended.positions.tolist() == [[4, 5, 6, -1], [0, 1, 2, -1], [-1] * 4]
    assert [slots(state, row) for row in range(3)] == [[4, 5, 6, -9], [0, 1, 2, -9], [-9] * 4]


@pytest.mark.parametrize(
    ("length", "new", "held_before", "held_after"),
    [
        (2, [2, 3], [0, 1, -1, -1], [0, 1, 2, 3]),
        (2, [2, 3, 4, -1], [0, 1, -1, -1], [4, 1, -9, -9]),
        (7, [7, 8, 9], [4, 5, 6, -1], [8, 9, 6, -9]),
        (4, [4, 5], [0, 1, 2, 3], [4, 5, 2, 3]),  # the whole past is in another chunk
        (3, list(range(3, 14)), [0, 1, 2, -1], [12, 13, 2, -9]),
        (0, [0, 1], [-1] * 4, [0, 1, -9, -9]),
    ],
)
def test_several_tokens_may_cross_into_other_chunks(
    length: int, new: list[int], held_before: list[int], held_after: list[int]
) -> None:
    before = prefilled(length) if length else empty_cache(LAYOUT, 1)
    state, attended = append(before, Phase.EXTEND, [new])
    assert attended.positions.tolist() == [[*held_before, *new]]
    held = [x for x in held_before + new if x >= 0]
    is_real = attended.positions[0] >= 0
    assert attended.keys[0, 0, is_real, 0].tolist() == held
    assert slots(state) == held_after


@pytest.mark.parametrize("num_slots", [1, 3])
def test_a_bucket_shorter_than_a_chunk_attends_to_its_slots(num_slots: int) -> None:
    _, attended = append(prefilled(num_slots), Phase.DECODE, [[num_slots - 1]], num_slots)
    assert attended.positions.tolist() == [list(range(num_slots))]
    assert attended.keys.shape[2] == num_slots


def test_a_new_sequence_does_not_see_the_row_s_old_one() -> None:
    state, _ = append(prefilled(8), Phase.PREFILL, [[0, 1]])
    _, attended = append(state, Phase.DECODE, [[2]])
    assert attended.positions.tolist() == [[0, 1, 2, -1]]

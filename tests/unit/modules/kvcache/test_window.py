from __future__ import annotations

from functools import partial

import pytest
import torch

from nxdi.modules.kvcache import WindowCache
from nxdi.modules.kvcache.spec import Attended, CacheState
from nxdi.types import Phase
from tiny_modules import append_positions, empty_cache, held_positions

WINDOW = 4
LAYOUT = WindowCache(num_kv_heads=1, size=WINDOW, head_dims=(2, 2))


append = partial(append_positions, LAYOUT)
slots = partial(held_positions, LAYOUT)


def run(length: int) -> tuple[CacheState, Attended | None]:
    """Decode tokens 0 .. length - 1 of one row."""
    state, attended = empty_cache(LAYOUT, 1), None
    for position in range(length):
        state, attended = append(state, Phase.DECODE, [[position]])
    return state, attended


def test_shape_has_one_slot_for_padding() -> None:
    assert LAYOUT.shapes(3) == [(3, 1, WINDOW + 1, 2)] * 2


@pytest.mark.parametrize(
    ("length", "held"),
    [
        (1, [0, -9, -9, -9]),
        (4, [0, 1, 2, 3]),
        (5, [4, 1, 2, 3]),
        (7, [4, 5, 6, 3]),
        (9, [8, 5, 6, 7]),
    ],
)
def test_prefill_and_decode_leave_the_same(length: int, held: list[int]) -> None:
    prefilled, _ = append(empty_cache(LAYOUT, 1), Phase.PREFILL, [list(range(length))])
    assert slots(prefilled) == held
    decoded, attended = run(length)
    assert slots(decoded) == held
    assert attended is not None
    assert attended.positions.tolist() == [[-1 if x == -9 else x for x in held]]
    for got, cache in ((attended.keys, decoded.k), (attended.values, decoded.v)):
        torch.testing.assert_close(got, cache[:, :, :WINDOW], rtol=0, atol=0, equal_nan=True)


def test_prefill_attends_to_itself() -> None:
    _, attended = append(empty_cache(LAYOUT, 1), Phase.PREFILL, [[0, 1, 2, 3, 4, 5, -1]])
    assert attended.positions.tolist() == [[0, 1, 2, 3, 4, 5, -1]]
    assert attended.keys.shape == (1, 1, 7, 2)


def test_rows_of_different_lengths_with_padding() -> None:
    prompts = [[0, 1, 2, 3, 4, 5], [0, 1, -1, -1, -1, -1], [-1] * 6]
    state, _ = append(empty_cache(LAYOUT, 3), Phase.PREFILL, prompts)
    assert slots(state, 0) == [4, 5, 2, 3]
    assert slots(state, 1) == [0, 1, -9, -9]
    assert slots(state, 2) == [-9] * 4


def test_padding_in_decode_touches_the_scratch_slot_only() -> None:
    state, _ = append(empty_cache(LAYOUT, 2), Phase.PREFILL, [[0, 1], [0, 1]])
    state, attended = append(state, Phase.DECODE, [[2], [-1]])
    assert slots(state, 0) == [0, 1, 2, -9]
    assert slots(state, 1) == [0, 1, -9, -9]
    assert attended.positions[0].tolist() == [0, 1, 2, -1]


@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_a_bucket_shorter_than_the_window_attends_to_its_slots(num_slots: int) -> None:
    state, _ = append(empty_cache(LAYOUT, 1), Phase.PREFILL, [list(range(num_slots))])
    _, attended = append(state, Phase.DECODE, [[num_slots - 1]], num_slots)
    assert attended.positions.tolist() == [list(range(num_slots))]
    assert attended.keys.shape[2] == num_slots


def test_a_new_sequence_does_not_see_the_row_s_old_one() -> None:
    state, _ = run(11)
    state, _ = append(state, Phase.PREFILL, [[0, 1]])
    _, attended = append(state, Phase.DECODE, [[2]])
    assert attended.positions.tolist() == [[0, 1, 2, -1]]


def test_append_changes_nothing_in_place() -> None:
    state = empty_cache(LAYOUT, 1)
    append(state, Phase.PREFILL, [[0, 1]])
    assert bool(state.k.isnan().all())


def test_several_tokens_see_the_window_before_them() -> None:
    state, _ = append(empty_cache(LAYOUT, 1), Phase.PREFILL, [list(range(6))])
    state, attended = append(state, Phase.EXTEND, [[6, 7, 8, -1]])
    assert attended.positions.tolist() == [[4, 5, 2, 3, 6, 7, 8, -1]]
    assert attended.keys[0, 0, :7, 0].tolist() == [4, 5, 2, 3, 6, 7, 8]
    assert slots(state) == [8, 5, 6, 7]


def test_extending_a_row_that_has_not_filled_its_window() -> None:
    state, _ = append(empty_cache(LAYOUT, 1), Phase.PREFILL, [[0, 1]])
    _, attended = append(state, Phase.EXTEND, [[2, 3, 4]])
    assert attended.positions.tolist() == [[0, 1, -1, -1, 2, 3, 4]]

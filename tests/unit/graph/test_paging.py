"""What a paged step may read and write, refused at the boundary."""

from __future__ import annotations

import pytest
import torch

from nxdi.config import NeuronConfig
from nxdi.errors import ShapeError
from nxdi.graph.paging import check_blocks, check_slots, default_blocks, positions_between

CONFIG = NeuronConfig(
    seq_len=12, batch_size=2, is_block_kv_layout=True, pa_block_size=4, pa_num_blocks=6
)


def ints(values: list[list[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_by_default_rows_have_equal_parts_of_the_pool() -> None:
    assert default_blocks(2, CONFIG).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ShapeError, match=r"need 9 blocks, but pa_num_blocks=6"):
        default_blocks(3, CONFIG)


@pytest.mark.parametrize(
    ("blocks", "positions"),
    [
        ([[0, 1, 2], [3, 4, 5]], [[8], [0]]),
        ([[5, -1], [0, -1]], [[0, 1, 2, 3], [0, 1, -1, -1]]),
        ([[0, 1], [0, 2]], [[4], [4]]),  # the block that both read is written by none
    ],
)
def test_tables_that_fit(blocks: list[list[int]], positions: list[list[int]]) -> None:
    check_blocks(ints(blocks), ints(positions), CONFIG)


@pytest.mark.parametrize(
    ("blocks", "positions", "message"),
    [
        ([[0, 1, 2]], [[8], [0]], r"shape \(1, 3\), needs \[2, blocks per row\]"),
        ([[0], [1]], [[4], [0]], r"row 0 has 1 blocks of 4 tokens, too few for position 4"),
        ([[0, 6], [1, 2]], [[4], [0]], r"row 0 has the blocks \[0, 6\].*from 0 to 5"),
        ([[0, -1], [1, 2]], [[4], [0]], r"row 0 has the blocks \[0, -1\]"),
        ([[2, 2], [1, 3]], [[4], [0]], r"row 0 has the blocks \[2, 2\].*distinct"),
        ([[0, 1], [2, 1]], [[4], [4]], r"rows 0 and 1 would both write block 1"),
        ([[0, 1], [0, 2]], [[0, 1], [0, 1]], r"rows 0 and 1 would both write block 0"),
        ([[0, 1], [0, 2]], [[2], [4]], r"row 0 would write block 0, which row 1 reads"),
        ([[0, 3], [3, 2]], [[4], [4]], r"row 0 would write block 3, which row 1 reads"),
        ([[3, 2], [0, 3]], [[4], [4]], r"row 1 would write block 3, which row 0 reads"),
    ],
)
def test_tables_that_do_not(
    blocks: list[list[int]], positions: list[list[int]], message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        check_blocks(ints(blocks), ints(positions), CONFIG)


def test_slots_must_agree_with_the_table() -> None:
    blocks, positions = ints([[5, 2]]), ints([[3, 4, -1]])
    check_slots(torch.tensor([[23, 8, -1]]), blocks, positions, 4)
    for wrong in ([[23, 9, -1]], [[23, 8, 0]], [[23, 8]]):
        with pytest.raises(ShapeError, match=r"is not where block_table puts these tokens"):
            check_slots(torch.tensor(wrong), blocks, positions, 4)


def test_positions_between_lengths() -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    places = positions_between(ids, torch.tensor([[4], [0]]), torch.tensor([[7], [1]]))
    assert places.tolist() == [[4, 5, 6], [0, -1, -1]]
    assert positions_between(ids, None, torch.tensor([3, 2])).tolist() == [[0, 1, 2], [0, 1, -1]]


@pytest.mark.parametrize(
    ("computed", "full", "message"),
    [
        ([0, 0], [4, 1], r"must be between 1 and the 3 tokens"),
        ([2, 0], [2, 1], r"must be between 1"),
        ([0, 0], [1], r"context lengths of 1 rows for 2 rows"),
    ],
)
def test_lengths_that_do_not_fit(computed: list[int], full: list[int], message: str) -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(ShapeError, match=message):
        positions_between(ids, torch.tensor(computed), torch.tensor(full))

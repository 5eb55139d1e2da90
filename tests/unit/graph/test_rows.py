from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nxdi.errors import ShapeError
from nxdi.graph.rows import check_rows, check_tokens, packed_left, phase_of, row_positions
from nxdi.types import Phase


def ids(rows: int, width: int) -> Tensor:
    return torch.arange(rows * width).view(rows, width)


def test_without_mask_or_positions_every_token_counts() -> None:
    positions = row_positions(ids(2, 3), None, None)
    assert positions.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert positions.dtype == torch.int32


def test_positions_alone_are_taken() -> None:
    assert row_positions(ids(1, 3), None, torch.tensor([[0, 1, -1]])).tolist() == [[0, 1, -1]]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [([1, 1, 1, 0], [0, 1, 2, -1]), ([0, 0, 1, 1], [-1, -1, 0, 1]), ([0, 1, 1, 0], [-1, 0, 1, -1])],
)
def test_mask_with_padding_on_either_side(mask: list[int], expected: list[int]) -> None:
    assert row_positions(ids(1, 4), torch.tensor([mask]), None).tolist() == [expected]


def test_mask_that_covers_earlier_tokens() -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    assert row_positions(ids(2, 1), mask, None).tolist() == [[3], [4]]


def test_transformers_style_positions_beside_a_left_padded_mask() -> None:
    """transformers gives padding position 1; the mask decides."""
    mask = torch.tensor([[0, 0, 1, 1]])
    assert row_positions(ids(1, 4), mask, torch.tensor([[1, 1, 0, 1]])).tolist() == [[-1, -1, 0, 1]]


def test_mask_of_ones_over_new_tokens_only() -> None:
    got = row_positions(ids(2, 1), torch.ones(2, 1), torch.tensor([[7], [3]]))
    assert got.tolist() == [[7], [3]]


def test_padding_beside_a_token_that_continues() -> None:
    got = row_positions(ids(1, 2), torch.tensor([[0, 1]]), torch.tensor([[1, 7]]))
    assert got.tolist() == [[-1, 7]]


def test_one_row_that_starts_does_not_hide_that_another_continues() -> None:
    got = row_positions(ids(2, 1), torch.ones(2, 1), torch.tensor([[0], [5]]))
    assert got.tolist() == [[0], [5]]
    with pytest.raises(ShapeError):
        phase_of(got)


@pytest.mark.parametrize(
    ("input_ids", "mask", "positions", "message"),
    [
        (torch.zeros(3), None, None, r"input_ids has shape \(3,\), needs \[batch, tokens\]"),
        (torch.zeros(1, 0), None, None, r"input_ids has shape \(1, 0\)"),
        (ids(1, 3), torch.ones(3), None, r"attention_mask has shape \(3,\), input_ids \(1, 3\)"),
        (ids(1, 3), torch.ones(2, 3), None, r"attention_mask has shape \(2, 3\)"),
        (ids(1, 3), torch.ones(1, 2), None, "attention_mask covers 2 tokens, input_ids has 3"),
        (
            ids(1, 3),
            None,
            torch.zeros(1, 2),
            r"position_ids has shape \(1, 2\), input_ids \(1, 3\)",
        ),
        (ids(1, 3), torch.ones(1, 3), torch.zeros(3), r"position_ids has shape \(3,\)"),
    ],
)
def test_shapes_that_do_not_fit(
    input_ids: Tensor, mask: Tensor | None, positions: Tensor | None, message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        row_positions(input_ids, mask, positions)


def test_packed_left_moves_padding_to_the_right() -> None:
    positions = torch.tensor([[-1, -1, 0, 1], [-1, 0, 1, 2]])
    packed, where = packed_left(torch.tensor([[0, 0, 5, 6], [0, 7, 8, 9]]), positions)
    assert where.tolist() == [[0, 1, -1], [0, 1, 2]]
    assert packed[:, :2].tolist() == [[5, 6], [7, 8]]
    assert packed[1, 2] == 9


def test_packed_left_drops_columns_of_padding() -> None:
    packed, where = packed_left(torch.tensor([[5, 0, 0]]), torch.tensor([[0, -1, -1]]))
    assert packed.tolist() == [[5]]
    assert where.tolist() == [[0]]


def test_a_row_without_tokens() -> None:
    with pytest.raises(ShapeError, match="row 1 has no token; every row needs at least one"):
        packed_left(ids(2, 2), torch.tensor([[0, 1], [-1, -1]]))


@pytest.mark.parametrize("positions", [[0, 2, 3], [0, 1, 1], [2, 1, 0]])
def test_positions_must_count_up(positions: list[int]) -> None:
    with pytest.raises(ShapeError, match=r"count up by one .* but are \[\["):
        packed_left(ids(1, 3), torch.tensor([positions]))


def test_phase_of() -> None:
    assert phase_of(torch.tensor([[0, 1], [0, -1]])) is Phase.PREFILL
    assert phase_of(torch.tensor([[0]])) is Phase.PREFILL
    assert phase_of(torch.tensor([[4], [9]])) is Phase.DECODE


def test_starting_and_continuing_rows_do_not_mix() -> None:
    with pytest.raises(ShapeError, match=r"rows \[1\] start at position 0.*separate steps"):
        phase_of(torch.tensor([[4], [0]]))


def test_a_row_that_continues_with_several_tokens_is_extended() -> None:
    assert phase_of(torch.tensor([[4, 5], [9, -1]])) is Phase.EXTEND


def test_check_rows_accepts_any_order() -> None:
    check_rows(torch.tensor([3, 0]), num_rows=2, max_rows=4)


@pytest.mark.parametrize("seq_ids", [[0], [0, 1, 2], [1, 1], [-1, 0], [0, 4]])
def test_check_rows_refuses(seq_ids: list[int]) -> None:
    with pytest.raises(ShapeError, match=r"must be 2 distinct numbers from 0 to 3 \(batch_size"):
        check_rows(torch.tensor(seq_ids), num_rows=2, max_rows=4)


@pytest.mark.parametrize("token", [-1, 97, 2**31])
def test_tokens_outside_the_vocabulary(token: int) -> None:
    tokens = torch.tensor([[0, 96], [3, token]])
    with pytest.raises(ShapeError, match=rf"token {token} at row 1, column 1 .*vocab_size=97"):
        check_tokens(tokens, 97)


def test_tokens_inside_the_vocabulary() -> None:
    check_tokens(torch.tensor([[0, 96]]), 97)

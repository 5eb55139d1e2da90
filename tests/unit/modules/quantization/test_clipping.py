"""Scales of least squared error, which may cut off the largest weights of a row."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nxdi.modules.quantization.clipping import least_squares


def largest_scale(rows: Tensor, bound: float) -> Tensor:
    return rows.abs().amax(-1, keepdim=True) / bound


def squared_error(rows: Tensor, scale: Tensor, bound: float) -> Tensor:
    stored = (rows / scale).round().clamp(-bound, bound)
    return (stored * scale - rows).pow(2).sum(-1)


@given(
    seed=st.integers(0, 10_000),
    columns=st.integers(1, 60),
    bound=st.sampled_from([127.0, 7.0]),
)
def test_no_row_has_more_error_than_with_the_scale_of_its_largest(
    seed: int, columns: int, bound: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(3, 2, columns, generator=draw) * 10.0 ** int(seed % 9 - 4)
    plain = largest_scale(rows, bound)
    found = least_squares(rows, plain, bound)
    assert found.shape == plain.shape
    assert bool(((found <= plain) & (found > 0)).all())
    error, most = squared_error(rows, found, bound), squared_error(rows, plain, bound)
    assert bool((error <= most * 1.0001).all())


def test_outliers_are_cut_off_where_that_pays() -> None:
    """Many weights up to 0.9 and one of 1: a smaller scale is better for the many."""
    row = torch.cat([torch.linspace(-0.9, 0.9, 10_000), torch.ones(1)])
    plain = largest_scale(row[None], 127)
    assert least_squares(row[None], plain, 127) < 0.99 * plain


def test_rows_are_searched_apart_however_many_there_are() -> None:
    rows = torch.randn(300, 1000, generator=torch.Generator().manual_seed(0))
    plain = largest_scale(rows, 7)
    alone = torch.cat([least_squares(rows[i : i + 1], plain[i : i + 1], 7) for i in range(300)])
    assert torch.equal(least_squares(rows, plain, 7), alone)


def test_rows_without_a_better_scale_keep_theirs() -> None:
    rows = torch.tensor([[127.0, -127, 3, 0], [0, 0, 0, 0], [3e38, -1, 1e30, 0], [1e-30, 0, 0, 0]])
    plain = torch.where(rows.abs().amax(1, keepdim=True) > 0, largest_scale(rows, 127), 1.0)
    assert torch.equal(least_squares(rows, plain, 127), plain)

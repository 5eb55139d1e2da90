from __future__ import annotations

import pytest
import torch

from nxdi.kernels.masks import Causal, MaskPolicy, SlidingWindow
from plain_attention import allowed_pairs

# Two rows at different places, padding on the right; keys in cache order, some slots still empty.
QUERIES = torch.tensor([[0, 1, 2, -1], [5, 6, 7, 8]], dtype=torch.int32)
KEYS = torch.tensor([[0, 1, 2, -1, -1], [8, 4, 5, 6, 7]], dtype=torch.int32)


@pytest.mark.parametrize(
    ("policy", "window"),
    [(Causal(), None), *[(SlidingWindow(size), size) for size in (1, 2, 3, 100)]],
)
def test_policies_pair_by_pair(policy: MaskPolicy, window: int | None) -> None:
    got = policy.allowed(QUERIES, KEYS)
    assert got.dtype == torch.bool
    assert torch.equal(got, allowed_pairs(QUERIES, KEYS, window))


def test_keys_shared_by_all_rows() -> None:
    keys = torch.arange(6)[None]
    got = Causal().allowed(torch.tensor([[2], [4]]), keys)
    assert got.tolist() == [[[True] * 3 + [False] * 3], [[True] * 5 + [False]]]


def test_a_window_counts_the_token_itself() -> None:
    got = SlidingWindow(2).allowed(torch.tensor([[5]]), torch.arange(8)[None])
    assert got.nonzero()[:, 2].tolist() == [4, 5]


def test_a_window_as_long_as_the_sequence_is_causal() -> None:
    positions = torch.arange(9)[None]
    causal = Causal().allowed(positions, positions)
    assert torch.equal(SlidingWindow(9).allowed(positions, positions), causal)


def test_policies_are_keys() -> None:
    assert {SlidingWindow(4), SlidingWindow(4), SlidingWindow(5), Causal(), Causal()} == {
        SlidingWindow(4),
        SlidingWindow(5),
        Causal(),
    }

from __future__ import annotations

import pytest
import torch

from nxdi.errors import ConfigError
from nxdi.kernels.masks import Causal, Chunked, MaskPolicy, SlidingWindow, choose_mask
from plain_attention import allowed_pairs

# Two rows at different places, padding on the right; keys in cache order, some slots still empty.
QUERIES = torch.tensor([[0, 1, 2, -1], [5, 6, 7, 8]], dtype=torch.int32)
KEYS = torch.tensor([[0, 1, 2, -1, -1], [8, 4, 5, 6, 7]], dtype=torch.int32)


@pytest.mark.parametrize(
    ("policy", "window", "chunk_size"),
    [
        (Causal(), None, None),
        *[(SlidingWindow(size), size, None) for size in (1, 2, 3, 100)],
        *[(Chunked(size), None, size) for size in (1, 2, 3, 4, 7, 100)],
    ],
)
def test_policies_pair_by_pair(
    policy: MaskPolicy, window: int | None, chunk_size: int | None
) -> None:
    got = policy.allowed(QUERIES, KEYS)
    assert got.dtype == torch.bool
    assert torch.equal(got, allowed_pairs(QUERIES, KEYS, window, chunk_size))


def test_keys_shared_by_all_rows() -> None:
    keys = torch.arange(6)[None]
    got = Causal().allowed(torch.tensor([[2], [4]]), keys)
    assert got.tolist() == [[[True] * 3 + [False] * 3], [[True] * 5 + [False]]]


def test_a_window_counts_the_token_itself() -> None:
    got = SlidingWindow(2).allowed(torch.tensor([[5]]), torch.arange(8)[None])
    assert got.nonzero()[:, 2].tolist() == [4, 5]


def test_a_chunk_begins_at_its_multiple() -> None:
    got = Chunked(4).allowed(torch.tensor([[7, 8, 10]]), torch.arange(12)[None])
    seen = [row.nonzero().flatten().tolist() for row in got[0]]
    assert seen == [[4, 5, 6, 7], [8], [8, 9, 10]]


def test_a_window_as_long_as_the_sequence_is_causal() -> None:
    positions = torch.arange(9)[None]
    causal = Causal().allowed(positions, positions)
    assert torch.equal(SlidingWindow(9).allowed(positions, positions), causal)


def test_policies_are_keys() -> None:
    made = [SlidingWindow(4), SlidingWindow(4), SlidingWindow(5), Chunked(4), Causal(), Causal()]
    assert set(made) == {SlidingWindow(4), SlidingWindow(5), Chunked(4), Causal()}
    assert len(set(made)) == 4


def test_the_policy_that_hides_something() -> None:
    assert choose_mask(None, None, 8) == Causal()
    assert choose_mask(7, None, 8) == SlidingWindow(7)
    assert choose_mask(None, 7, 8) == Chunked(7)
    assert choose_mask(8, None, 8) == choose_mask(None, 8, 8) == Causal()
    with pytest.raises(ConfigError, match=r"sliding_window=3 or attention_chunk_size=4, not both"):
        choose_mask(3, 4, 8)

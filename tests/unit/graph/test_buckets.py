from __future__ import annotations

import pytest

from nxdi.errors import BucketError
from nxdi.graph.buckets import choose_bucket, make_ladder


@pytest.mark.parametrize(
    ("longest", "ladder"),
    [
        # The examples in NxDI's documentation.
        (2048, (128, 256, 512, 1024, 2048)),
        (1000, (128, 256, 512, 1000)),
        (640, (128, 256, 640)),
        (200, (128, 200)),
        (180, (180,)),
        # Shorter than the smallest rung, and exactly on it.
        (1, (1,)),
        (100, (100,)),
        (128, (128,)),
        (129, (129,)),
    ],
)
def test_make_ladder(longest: int, ladder: tuple[int, ...]) -> None:
    assert make_ladder(longest) == ladder


@pytest.mark.parametrize(("need", "rung"), [(1, 128), (128, 128), (129, 256), (256, 256)])
def test_choose_bucket_takes_an_exact_fit(need: int, rung: int) -> None:
    assert choose_bucket(need, (128, 256), "prompt", "raise it") == rung


def test_choose_bucket_beyond_the_top() -> None:
    with pytest.raises(BucketError, match=r"prompt of 257 .*largest bucket \(256\); raise seq_len"):
        choose_bucket(257, (128, 256), "prompt", "raise seq_len")

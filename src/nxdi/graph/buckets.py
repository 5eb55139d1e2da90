"""Bucket ladders and the choice of a rung. Pure functions over integers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nxdi.errors import BucketError

_SMALLEST = 128


def make_ladder(longest: int) -> tuple[int, ...]:
    """Powers of two from 128 up to `longest`, which is always the last rung.

    The last power is left out when it lies close below `longest`, as NxDI does: 1000 -> 128, 256,
    512, 1000 and 640 -> 128, 256, 640.
    """
    powers = range(int(math.log2(_SMALLEST)), round(math.log2(longest)))
    rungs = [2**power for power in powers if 2**power < longest]
    return (*rungs, longest)


def choose_bucket(need: int, ladder: Sequence[int], what: str, remedy: str) -> int:
    """The smallest rung >= `need` (an exact fit is a fit). Raises: BucketError if none is."""
    for rung in ladder:
        if rung >= need:
            return rung
    raise BucketError(
        f"{what} of {need} is longer than the largest bucket ({ladder[-1]}); {remedy}"
    )

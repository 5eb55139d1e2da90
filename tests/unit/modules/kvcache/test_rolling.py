"""Tokens that are taken back must not have replaced what is still seen."""

from __future__ import annotations

import pytest
import torch

from nxdi.modules.kvcache import ChunkedCache, RollingCache, WindowCache
from nxdi.modules.kvcache.spec import CacheState, StepPositions
from nxdi.types import Phase

SIZE, VERIFIED, LENGTH = 4, 6, 40


def attended(
    layout: RollingCache, phase: Phase, positions: list[int], state: CacheState, mark: float
) -> tuple[CacheState, dict[int, float]]:
    """Write tokens whose keys are their position plus `mark`; what the first of them may see."""
    where = torch.tensor([positions], dtype=torch.int32)
    k = (where.float() + mark)[:, None, :, None]
    rows = torch.zeros(1, dtype=torch.int32)
    state, found = layout.append(state, k, k, StepPositions(phase, where, rows, LENGTH))
    keys = found.keys[0, 0, :, 0].tolist()
    first, oldest = positions[0], int(layout.oldest(where[:, :1]))
    return state, {
        place: key
        for place, key in zip(found.positions[0].tolist(), keys, strict=True)
        if max(oldest, 0) <= place <= first
    }


def misreads(layout: RollingCache, num_kept: int) -> bool:
    """Whether a walk in verify steps that keep `num_kept` tokens each sees a wrong key."""
    state = CacheState(*(torch.full(shape, -99.0) for shape in layout.shapes(1)))
    state, _ = attended(layout, Phase.PREFILL, list(range(9)), state, 0)
    start = 9
    while start + VERIFIED < LENGTH:
        for phase, count in ((Phase.VERIFY, VERIFIED), (Phase.DECODE, 1)):
            # What turns out to be wrong is marked; what is kept is written again as it is.
            tokens = list(range(start, start + count))
            state, seen = attended(layout, phase, tokens, state, 0.5)
            seen.pop(start)
            oldest = max(int(layout.oldest(torch.tensor([[start]]))), 0)
            if seen != {place: float(place) for place in range(oldest, start)}:
                return True
            kept = tokens[: num_kept if phase is Phase.VERIFY else 1]
            for place in kept:
                slot = place % layout.num_slots
                state.k[0, 0, slot] = state.v[0, 0, slot] = place
            start += len(kept)
    return False


@pytest.mark.parametrize("cls", [WindowCache, ChunkedCache])
@pytest.mark.parametrize("num_kept", range(1, VERIFIED + 1))
def test_spare_slots_keep_what_is_seen(cls: type[RollingCache], num_kept: int) -> None:
    assert not misreads(cls(1, SIZE, (1, 1), num_spare=VERIFIED - 1), num_kept)


@pytest.mark.parametrize("cls", [WindowCache, ChunkedCache])
def test_without_them_it_is_lost(cls: type[RollingCache]) -> None:
    assert misreads(cls(1, SIZE, (1, 1)), 1)


def test_spare_slots_are_memory() -> None:
    assert WindowCache(2, 4, (8, 8), num_spare=3).shapes(5) == 2 * [(5, 2, 8, 8)]

"""The plain cache: slot = position, one row per sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi.modules.kvcache.spec import Attended, CacheState, StepPositions, row_slots, write_slots
from nxdi.types import Phase


@dataclass(frozen=True)
class ContiguousCache:
    """Slots 0 .. max_len - 1 hold the tokens at those positions; one more takes padding.

    Nothing reads the last slot, so padding needs no branch and never disturbs a neighbour.
    """

    num_kv_heads: int
    max_len: int
    head_dims: tuple[int, int]  # of a key, and of a value

    def shapes(self, batch_size: int) -> list[tuple[int, ...]]:
        return [(batch_size, self.num_kv_heads, self.max_len + 1, dim) for dim in self.head_dims]

    def append(
        self, state: CacheState, k: Tensor, v: Tensor, step: StepPositions
    ) -> tuple[CacheState, Attended]:
        assert step.rows is not None
        slots = torch.where(step.positions < 0, self.max_len, step.positions)
        new = CacheState(
            write_slots(state.k, k, step.rows, slots), write_slots(state.v, v, step.rows, slots)
        )
        if step.phase is Phase.PREFILL:
            return new, Attended(k, v, step.positions)
        positions = torch.arange(step.num_slots, dtype=torch.int32, device=k.device)[None]
        held = self.past(new, step)
        return new, Attended(held.k, held.v, positions)

    def past(self, state: CacheState, step: StepPositions) -> CacheState:
        return CacheState(*(row_slots(x, step, step.num_slots) for x in state))

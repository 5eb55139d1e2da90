"""The plain cache: slot = position, one row per sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi.modules.kvcache.spec import Attended, CacheState, StepPositions, write_slots
from nxdi.types import Phase


@dataclass(frozen=True)
class ContiguousCache:
    """Slots 0 .. max_len - 1 hold the tokens at those positions; one more takes padding.

    Nothing reads the last slot, so padding needs no branch and never disturbs a neighbour.
    """

    num_kv_heads: int
    max_len: int
    head_dim: int

    def shape(self, batch_size: int) -> tuple[int, ...]:
        return (batch_size, self.num_kv_heads, self.max_len + 1, self.head_dim)

    def append(
        self, state: CacheState, k: Tensor, v: Tensor, step: StepPositions
    ) -> tuple[CacheState, Attended]:
        slots = torch.where(step.positions < 0, self.max_len, step.positions)
        new = CacheState(
            *(
                write_slots(cache, x, step.rows, slots)
                for cache, x in zip(state, (k, v), strict=True)
            )
        )
        if step.phase is Phase.PREFILL:
            return new, Attended(k, v, step.positions)
        batch, length = k.shape[0], step.num_slots
        positions = torch.arange(length, dtype=torch.int32, device=k.device)[None]
        return new, Attended(new.k[:batch, :, :length], new.v[:batch, :, :length], positions)

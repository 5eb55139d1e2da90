"""The cache of local attention: slots are used in turn, so that new tokens replace old ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi.modules.kvcache.spec import Attended, CacheState, StepPositions, row_slots, write_slots
from nxdi.types import Phase


@dataclass(frozen=True)
class RollingCache(ABC):
    """At most the last `size` tokens of each row, plus one slot for what padding writes.

    A subclass says which of them count. num_spare: tokens that one step may write and a later one
    replace by others. There are as many slots more, so that what is taken back has not replaced a
    token that is still seen; a slot that holds such a token counts as that of an older one, which
    nothing sees.
    """

    num_kv_heads: int
    size: int
    head_dims: tuple[int, int]  # of a key, and of a value
    num_spare: int = 0

    @abstractmethod
    def oldest(self, newest: Tensor) -> Tensor:
        """The first position that the token at `newest` sees, at most `size` - 1 before it.

        May be negative.
        """

    @property
    def num_slots(self) -> int:
        return self.size + self.num_spare

    def shapes(self, batch_size: int) -> list[tuple[int, ...]]:
        return [(batch_size, self.num_kv_heads, self.num_slots + 1, dim) for dim in self.head_dims]

    def append(
        self, state: CacheState, k: Tensor, v: Tensor, step: StepPositions
    ) -> tuple[CacheState, Attended]:
        assert step.rows is not None
        newest = step.positions.amax(dim=1, keepdim=True)
        # Tokens that no later one sees must not race for the slots of those that are kept.
        kept = (step.positions >= 0) & (step.positions >= self.oldest(newest) - self.num_spare)
        slots = torch.where(kept, step.positions % self.num_slots, self.num_slots)
        new = CacheState(
            write_slots(state.k, k, step.rows, slots), write_slots(state.v, v, step.rows, slots)
        )
        if step.phase is Phase.PREFILL:
            return new, Attended(k, v, step.positions)
        if step.phase is Phase.DECODE:
            held = self.past(new, step)
            return new, Attended(held.k, held.v, self._positions(newest, step.num_slots))
        # New tokens replace what the first of them still see: so the old cache, and them.
        old = self.past(state, step)
        num_new = (step.positions >= 0).sum(dim=1, keepdim=True, dtype=torch.int32)
        before = self._positions(newest - num_new, step.num_slots)
        positions = torch.cat([before, step.positions], dim=1)
        keys, values = torch.cat([old.k, k], dim=2), torch.cat([old.v, v], dim=2)
        return new, Attended(keys, values, positions)

    def past(self, state: CacheState, step: StepPositions) -> CacheState:
        length = min(self.num_slots, step.num_slots)
        return CacheState(*(row_slots(x, step, length) for x in state))

    def _positions(self, newest: Tensor, num_seen: int) -> Tensor:
        """The position in each slot that a graph of `num_seen` positions reads, -1 if none.

        Shapes: [B, 1] -> [B, L].
        """
        length = min(self.num_slots, num_seen)
        slots = torch.arange(length, dtype=torch.int32, device=newest.device)[None]
        held = newest - (newest - slots) % self.num_slots
        return torch.where(held < self.oldest(newest).clamp(min=0), -1, held)

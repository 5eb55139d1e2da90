"""The paged cache: tokens in blocks that any row may own, as its block table says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi.modules.kvcache.spec import Attended, CacheState, StepPositions, Stored
from nxdi.types import Phase


@dataclass(frozen=True)
class PagedCache:
    """`num_blocks` blocks of `block_size` tokens, and one more that takes padding.

    Nothing reads the last block. The token at position p of a row is in block table[p //
    block_size], at p % block_size. Source: arXiv:2309.06180 section 4.
    """

    num_kv_heads: int
    num_blocks: int
    block_size: int
    head_dims: tuple[int, int]  # of a key, and of a value

    def shapes(self, batch_size: int) -> list[tuple[int, ...]]:
        return [
            (self.num_blocks + 1, self.num_kv_heads, self.block_size, dim) for dim in self.head_dims
        ]

    def append(
        self, state: CacheState, k: Tensor, v: Tensor, step: StepPositions
    ) -> tuple[CacheState, Attended]:
        new = CacheState(self._write(state.k, k, step), self._write(state.v, v, step))
        if step.phase is Phase.PREFILL:
            return new, Attended(k, v, step.positions)
        positions = torch.arange(step.num_slots, dtype=torch.int32, device=k.device)[None]
        held = self.past(new, step)
        return new, Attended(held.k, held.v, positions, self._in_blocks(new, step))

    def past(self, state: CacheState, step: StepPositions) -> CacheState:
        return CacheState(self._read(state.k, step), self._read(state.v, step))

    def _write(self, cache: Tensor, new: Tensor, step: StepPositions) -> Tensor:
        assert step.blocks is not None
        # In 32 bits until they index: Neuron computes integers no wider.
        places = step.positions.clamp(min=0)
        blocks = step.blocks.gather(1, (places // self.block_size).long())
        blocks = torch.where((step.positions < 0) | (blocks < 0), self.num_blocks, blocks)
        heads = torch.arange(cache.shape[1], device=cache.device)
        offsets = (places % self.block_size).long()
        where = (blocks.long()[:, None], heads[None, :, None], offsets[:, None])
        return torch.index_put(cache, where, new.to(cache.dtype))

    def _in_blocks(self, state: CacheState, step: StepPositions) -> Stored | None:
        """What the step sees, if that is whole blocks."""
        count, rest = divmod(step.num_slots, self.block_size)
        return None if rest else Stored(*state, self._numbers(step)[:, :count])

    def _numbers(self, step: StepPositions) -> Tensor:
        """The blocks of each row, those that it has not being the one for padding."""
        assert step.blocks is not None
        return torch.where(step.blocks < 0, self.num_blocks, step.blocks)

    def _read(self, cache: Tensor, step: StepPositions) -> Tensor:
        """Every block of each row, in order. [T, N, block_size, D] -> [B, N, num_slots, D]."""
        held = cache[self._numbers(step).long()].transpose(1, 2).flatten(2, 3)
        return held[:, :, : step.num_slots]

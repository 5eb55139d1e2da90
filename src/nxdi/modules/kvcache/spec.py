"""What a layer asks of its cache, whatever the layout."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nxdi.types import Phase


class CacheState(NamedTuple):
    """The two tensors of one layer's cache."""

    k: Tensor
    v: Tensor


class Attended(NamedTuple):
    """What a step attends to.

    keys, values [B, N, L, D]; positions [B, L] or [1, L], -1 = nothing there.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor


class StepPositions(NamedTuple):
    """Where the new tokens of a step go.

    positions [B, S], -1 = padding; rows [B]: cache row of each batch row.
    """

    phase: Phase
    positions: Tensor
    rows: Tensor
    num_slots: int


class KVCacheLayout(Protocol):
    """One way to lay out keys and values.

    Pure: `append` returns new tensors and changes nothing.
    """

    def shape(self, batch_size: int) -> tuple[int, ...]:
        """Shape of the key tensor, and of the value tensor, on one rank."""
        ...

    def append(
        self, state: CacheState, k: Tensor, v: Tensor, step: StepPositions
    ) -> tuple[CacheState, Attended]:
        """Write new keys and values [B, N, S, D]; the new cache, and what the step attends to."""
        ...


def write_slots(cache: Tensor, new: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
    """Out-of-place write of new tokens at their slots.

    Shapes: cache [R, N, T, D]; new [B, N, S, D]; rows [B]; slots [B, S] -> as `cache`.
    """
    heads = torch.arange(cache.shape[1], device=cache.device)
    where = (rows.long()[:, None, None], heads[None, :, None], slots.long()[:, None, :])
    return torch.index_put(cache, where, new.to(cache.dtype))

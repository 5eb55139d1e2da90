"""What a layer asks of its cache, whatever the layout."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from nxdi.types import Phase


class CacheState(NamedTuple):
    """The two tensors of one layer's cache."""

    k: Tensor
    v: Tensor


class Stored(NamedTuple):
    """Keys and values as a cache holds them, for kernels that read it in place.

    k, v [B, N, L, D], or of blocks [T, N, block, D] with their numbers `blocks` [B, L / block];
    scales float32 [2, N]: what keys and values are to be multiplied by, or None.
    """

    k: Tensor
    v: Tensor
    blocks: Tensor | None = None
    scales: Tensor | None = None


class Attended(NamedTuple):
    """What a step attends to.

    keys, values [B, N, L, D]; positions [B, L] or [1, L], -1 = nothing there. `stored` is the same
    where it is stored otherwise, and a kernel can read that: then a graph may leave out the others.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    stored: Stored | None = None


class StepPositions(NamedTuple):
    """Where the new tokens of a step go.

    positions [B, S], -1 = padding; rows [B]: cache row of each batch row; num_slots: positions that
    queries may see; blocks [B, n]: of a paged cache, in the order of their tokens, -1 = none.
    """

    phase: Phase
    positions: Tensor
    rows: Tensor | None
    num_slots: int
    blocks: Tensor | None = None


class KVCacheLayout(Protocol):
    """One way to lay out keys and values, whose sizes may differ.

    Pure: `append` returns new tensors and changes nothing.
    """

    def shapes(self, batch_size: int) -> list[tuple[int, ...]]:
        """Shapes of the key tensor and of the value tensor on one rank."""
        ...

    def append(
        self, state: CacheState, k: Tensor, v: Tensor, step: StepPositions
    ) -> tuple[CacheState, Attended]:
        """Write new keys and values [B, N, S, D]; the new cache, and what the step attends to."""
        ...

    def past(self, state: CacheState, step: StepPositions) -> CacheState:
        """Keys and values [B, N, L, D] that the rows of a step have so far."""
        ...


def layout_of(layer: nn.Module) -> KVCacheLayout:
    """The cache layout of a layer, found on the module in it that has one."""
    found: Any = next(m.cache_layout for m in layer.modules() if hasattr(m, "cache_layout"))
    return found  # type: ignore[no-any-return]  # attributes of modules have no types


def row_slots(cache: Tensor, step: StepPositions, num_slots: int) -> Tensor:
    """The first `num_slots` slots of each batch row. [R, N, T, D] -> [B, N, num_slots, D].

    Decoding reads its cache in place, since its rows are the first cache rows.
    """
    if step.phase.is_decoding:
        return cache[: step.positions.shape[0], :, :num_slots]
    assert step.rows is not None
    return cache[step.rows.long(), :, :num_slots]


def write_slots(cache: Tensor, new: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
    """Out-of-place write of new tokens at their slots.

    Shapes: cache [R, N, T, D]; new [B, N, S, D]; rows [B]; slots [B, S] -> as `cache`.
    """
    heads = torch.arange(cache.shape[1], device=cache.device)
    where = (rows.long()[:, None, None], heads[None, :, None], slots.long()[:, None, :])
    return torch.index_put(cache, where, new.to(cache.dtype))

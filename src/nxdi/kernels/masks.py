"""Mask policies: which keys a query may see, from positions alone.

Frozen, so they serve as keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from nxdi.errors import ConfigError


class MaskPolicy(Protocol):
    """A rule over absolute positions (tokens, from 0)."""

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Shapes: queries [B, S], keys [B, L] or [1, L] (-1 = nothing there) -> bool [B, S, L]."""
        ...


@dataclass(frozen=True)
class Causal:
    """A token sees itself and everything before it."""

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        keys = key_positions.unsqueeze(1)
        return (keys <= query_positions.unsqueeze(2)) & (keys >= 0)


@dataclass(frozen=True)
class SlidingWindow:
    """A token sees itself and the `window - 1` tokens before it.

    Source: arXiv:2310.06825 section 2.
    """

    window: int

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        near = key_positions.unsqueeze(1) > query_positions.unsqueeze(2) - self.window
        return Causal().allowed(query_positions, key_positions) & near


@dataclass(frozen=True)
class Chunked:
    """A token sees itself and what is before it in its own chunk of `chunk_size` positions.

    As in the layers of Llama 4 that have rotary positions.
    """

    chunk_size: int

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        first = query_positions - query_positions % self.chunk_size
        is_in_chunk = key_positions.unsqueeze(1) >= first.unsqueeze(2)
        return Causal().allowed(query_positions, key_positions) & is_in_chunk


def choose_mask(sliding_window: int | None, chunk_size: int | None, max_len: int) -> MaskPolicy:
    """The policy of a layer whose sequences have up to `max_len` tokens.

    Raises: ConfigError for a window and chunks at once.
    """
    if sliding_window is not None and chunk_size is not None:
        raise ConfigError(
            f"a layer has sliding_window={sliding_window} or attention_chunk_size={chunk_size}, "
            "not both; leave one out"
        )
    if sliding_window is not None and sliding_window < max_len:
        return SlidingWindow(sliding_window)
    if chunk_size is not None and chunk_size < max_len:
        return Chunked(chunk_size)
    return Causal()

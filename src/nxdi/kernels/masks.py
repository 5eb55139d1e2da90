"""Mask policies: which keys a query may see, from positions alone.

Frozen, so they serve as keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


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

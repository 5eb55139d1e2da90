"""The cache of attention in chunks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nxdi.modules.kvcache.rolling import RollingCache


@dataclass(frozen=True)
class ChunkedCache(RollingCache):
    """The tokens of each row's chunk of `size`; the first token of the next chunk empties it."""

    def oldest(self, newest: Tensor) -> Tensor:
        return newest - newest % self.size

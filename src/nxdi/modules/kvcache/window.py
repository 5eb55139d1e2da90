"""The cache of sliding-window attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nxdi.modules.kvcache.rolling import RollingCache


@dataclass(frozen=True)
class WindowCache(RollingCache):
    """The last `size` tokens of each row.

    Source: arXiv:2310.06825 section 2.
    """

    def oldest(self, newest: Tensor) -> Tensor:
        return newest - (self.size - 1)

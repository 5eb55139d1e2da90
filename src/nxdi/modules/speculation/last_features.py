"""What a draft head in the graph goes on from: the target's features of each sequence's last token.

A tensor of state beside the caches, addressed as they are: by rows, or by blocks. A block keeps
those of the last token in it, so that whoever finds a prefix in the cache finds them as well.
Legend: B rows of a step, S tokens of each, F elements of the features of a token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nxdi.config import NeuronConfig


@dataclass(frozen=True)
class LastFeatures(ABC):
    """The features of one token for each of `num_places`; one place more takes padding.

    Pure, as a cache layout is. What is kept for padding is read where nothing depends on it.
    """

    num_places: int
    size: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_places + 1, self.size)

    @abstractmethod
    def places(self, positions: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Where the tokens at `positions` [B, S] of the rows of a step belong; int32 [B, S].

        Those at negative positions to the place of padding.
        """

    def before(self, state: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """The features of the token before each row's first one. -> float32 [B, 1, F]."""
        places = self.places(inputs["position_ids"][:, :1] - 1, inputs)
        return state[places.long()].float()

    def keep(
        self, state: Tensor, features: Tensor, positions: Tensor, inputs: Mapping[str, Tensor]
    ) -> Tensor:
        """The state after a step that has kept the tokens at `positions` [B, S], -1 = not kept.

        Kept tokens come first, in line. Shapes: features [B, S, F].
        """
        places = self.places(positions, inputs)
        following = F.pad(places[:, 1:], (0, 1), value=self.num_places)
        last = torch.where(places != following, places, self.num_places)
        return torch.index_put(state, (last.long(),), features.to(state.dtype))


@dataclass(frozen=True)
class RowFeatures(LastFeatures):
    """One place for each row of the cache."""

    def places(self, positions: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        return torch.where(positions < 0, self.num_places, inputs["seq_ids"].unsqueeze(1))


@dataclass(frozen=True)
class BlockFeatures(LastFeatures):
    """One place for each block of a paged cache."""

    block_size: int

    def places(self, positions: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        numbers = positions.clamp(min=0) // self.block_size
        blocks = inputs["block_table"].gather(1, numbers.long())
        return torch.where((positions < 0) | (blocks < 0), self.num_places, blocks)


def make_last_features(config: NeuronConfig, size: int) -> LastFeatures:
    """Those for the target's `config`, of `size` elements."""
    if config.is_block_kv_layout:
        return BlockFeatures(config.pa_num_blocks, size, config.compute_dtype, config.pa_block_size)
    return RowFeatures(config.kv_cache_batch_size, size, config.compute_dtype)

"""YaRN: rotary frequencies for texts longer than those a model was trained on.

Source: arXiv:2309.00071; options as in Hugging Face's `rope_scaling`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Yarn:
    """Long waves are stretched by `factor`, short ones kept, and those between are mixed.

    beta_fast, beta_slow: turns within `trained_len` tokens from which a wave is kept, and up to
    which it is stretched. truncate: the bounds are whole numbers of pairs.
    """

    factor: float
    trained_len: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def frequencies(self, inv_freq: Tensor, base: float) -> Tensor:
        """The new frequency of each pair [dim / 2]."""
        dim = 2 * inv_freq.shape[0]
        low, high = (self._pair(turns, dim, base) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        if low == high:
            high += 0.001  # a step, not a division by zero
        pairs = torch.arange(dim // 2, dtype=torch.float32)
        stretched = ((pairs - low) / (high - low)).clamp(0, 1)
        return inv_freq / self.factor * stretched + inv_freq * (1 - stretched)

    def _pair(self, turns: float, dim: int, base: float) -> float:
        """The pair, as a fraction, that makes so many turns within the trained length."""
        wavelength = self.trained_len / turns / (2 * math.pi)
        return dim * math.log(wavelength) / (2 * math.log(base))


def growth(factor: float, scale: float = 1.0) -> float:
    """What YaRN multiplies cos and sin by, so that attention stays as sharp."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def score_growth(scaling: Mapping[str, Any] | None) -> float:
    """What DeepSeek multiplies scores by, where `mscale_all_dim` asks for more than cos and sin do.

    scaling: as in Hugging Face's `rope_scaling`. Source: arXiv:2405.04434.
    """
    if scaling is None or not scaling.get("mscale_all_dim"):
        return 1.0
    return growth(scaling["factor"], scaling["mscale_all_dim"]) ** 2

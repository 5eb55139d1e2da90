"""Which activations a graph returns besides its result, for those who predict from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nxdi.config import NeuronConfig
from nxdi.graph.plan import FEATURES

Norm = Callable[[Tensor], Tensor]


class Features(Protocol):
    """Activations of every token after some layers.

    layers: after which; `outputs` is given them by layer, [B, S, hidden_size] each, and the norm
    that stands before lm_head.
    """

    @property
    def layers(self) -> tuple[int, ...]: ...

    def outputs(self, after: Mapping[int, Tensor], norm: Norm) -> dict[str, Tensor]:
        """What the graph returns, by name, float32."""
        ...


@dataclass(frozen=True)
class NoFeatures:
    """None at all."""

    layers: tuple[int, ...] = ()

    def outputs(self, after: Mapping[int, Tensor], norm: Norm) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class NormedFeatures:
    """What lm_head sees, of every token: [B, S, hidden_size]."""

    last: int

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.last,)

    def outputs(self, after: Mapping[int, Tensor], norm: Norm) -> dict[str, Tensor]:
        return {FEATURES: norm(after[self.last]).float()}


@dataclass(frozen=True)
class LayerFeatures:
    """What some layers leave, side by side: [B, S, len(layers) * hidden_size]."""

    layers: tuple[int, ...]

    def outputs(self, after: Mapping[int, Tensor], norm: Norm) -> dict[str, Tensor]:
        return {FEATURES: torch.cat([after[layer] for layer in self.layers], dim=-1).float()}


def make_features(config: NeuronConfig, num_layers: int) -> Features:
    """What draft heads take from their target, and from themselves.

    EAGLE (arXiv:2401.15077) reads the target's last activations, EAGLE-3 (arXiv:2503.01840) those
    after a low, a middle and a high layer, which are NxDI's 1, L / 2 - 1 and L - 4 of L.
    """
    last = num_layers - 1
    if config.is_eagle_draft:
        return LayerFeatures((last,))
    if not config.enable_eagle_speculation:
        return NoFeatures()
    if not config.is_eagle3:
        return NormedFeatures(last)
    return LayerFeatures(tuple(max(layer, 0) for layer in (1, num_layers // 2 - 1, last - 3)))

"""How the tokens of a step follow each other: in line, or as a tree of proposals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from nxdi.config import NeuronConfig
from nxdi.kernels.masks import MaskPolicy
from nxdi.types import Phase


class Order(Protocol):
    """Where the tokens of one step stand, and which of the keys they see.

    Legend: B rows, S tokens of a row, L keys.
    """

    @property
    def places(self) -> Tensor:
        """The place of each token in its sequence [B, S], from 0; -1 = padding."""
        ...

    def allowed(self, policy: MaskPolicy, key_slots: Tensor) -> Tensor:
        """Shapes: key_slots [B, L] or [1, L] (-1 = nothing there) -> bool [B, S, L]."""
        ...


@dataclass(frozen=True)
class InLine:
    """Each token follows the one before it: its slot is its place."""

    places: Tensor

    def allowed(self, policy: MaskPolicy, key_slots: Tensor) -> Tensor:
        return policy.allowed(self.places, key_slots)


@dataclass(frozen=True)
class InTree:
    """The new tokens of a row lie in slots one after the other, and are a tree.

    A token sees what lies before the first new slot, as far as the policy lets it, and of the new
    tokens those that lead to it. Slots behind them hold what an earlier step has left there.
    Shapes: slots, places [B, S], -1 = padding; sees [B, S, S], 1 = the token sees that one.
    """

    slots: Tensor
    places: Tensor
    sees: Tensor

    def allowed(self, policy: MaskPolicy, key_slots: Tensor) -> Tensor:
        num_new = self.slots.shape[1]
        key_slots = key_slots.expand(self.slots.shape[0], -1)
        node = key_slots - self.slots[:, :1]  # of the new tokens that a key is, if it is one
        is_old = (node < 0).unsqueeze(1)
        is_new = ((node >= 0) & (node < num_new)).unsqueeze(1)
        index = node.clamp(0, num_new - 1).long()
        key_places = key_slots.where(node < 0, self.places.gather(1, index))
        sees = self.sees.gather(2, index.unsqueeze(1).expand(-1, num_new, -1)) > 0
        return policy.allowed(self.places, key_places) & (is_old | (is_new & sees))


def _in_line(inputs: Mapping[str, Tensor]) -> Order:
    return InLine(inputs["position_ids"])


def _in_tree(inputs: Mapping[str, Tensor]) -> Order:
    return InTree(inputs["position_ids"], inputs["token_places"], inputs["tree_mask"])


def choose_order(config: NeuronConfig) -> Callable[[Mapping[str, Tensor]], Order]:
    """How the graphs of the phase that `config` is for find the order of a step in its inputs."""
    is_tree = config.verifies_trees and config.phase is Phase.VERIFY
    return _in_tree if is_tree else _in_line

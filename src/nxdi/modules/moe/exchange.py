"""Tokens sent to the ranks of their experts and back, where a rank holds a piece of the sequence.

Source: arXiv:2006.16668 section 3.2. The alternative, `combine`, gathers all tokens on every rank
first. What is sent has one size whatever the tokens choose: `capacity` places for each expert.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nxdi.config import MoENeuronConfig
from nxdi.modules.context import running_context
from nxdi.modules.moe.capacity import CapacityFactor, choose_capacity
from nxdi.modules.moe.experts import Experts
from nxdi.modules.moe.router import Routing
from nxdi.modules.moe.shared import SharedExperts
from nxdi.modules.moe.spec import MoESpec
from nxdi.parallel_layers import mappings


class Everywhere:
    """The experts of all ranks, as `Experts` has them that one rank holds alone.

    Shapes: x [E, N, H] -> the same; what an expert is given goes to its rank.
    """

    def __init__(self, experts: Experts) -> None:
        self.experts, self.layout = experts, experts.layout
        self.num_local = experts.layout.num_experts

    def local(self, experts: Tensor) -> Tensor:
        return experts

    def __call__(self, x: Tensor, which: Tensor | None = None) -> Tensor:
        assert which is None  # group g is for expert g
        arrived = mappings.all_to_all_in_tensor_model_parallel_region(x, 0, 1)
        computed = self.experts(arrived)
        return mappings.all_to_all_in_tensor_model_parallel_region(computed, 1, 0)


@dataclass(frozen=True)
class Exchange:
    """A dispatch strategy for ranks with tokens of their own: the whole sum [T / ranks, H] of each.

    fill: puts tokens into the places that experts have for those of one rank.
    """

    fill: CapacityFactor

    def __call__(self, experts: Experts, x: Tensor, routing: Routing) -> Tensor:
        return self.fill(Everywhere(experts), x, routing)


class SharedAcrossPieces(SharedExperts):
    """Shapes: x [T / ranks, H] of one rank's tokens -> their whole sums."""

    def forward(self, x: Tensor) -> Tensor:
        part = super().forward(mappings.gather_from_sequence_parallel_region(x, 0))
        return mappings.reduce_scatter_to_sequence_parallel_region(part, 0)


class OwnPositions(nn.Module):
    """The positions [T] of the tokens that a rank routes, -1 = padding."""

    def __init__(self, is_piece: bool) -> None:
        super().__init__()
        self.is_piece = is_piece

    def forward(self) -> Tensor:
        positions = running_context(self).position_ids
        if self.is_piece:
            positions = mappings.scatter_to_sequence_parallel_region(positions, 1)
        return positions.flatten()


def exchanges_tokens(neuron: MoENeuronConfig) -> bool:
    """Whether the modules of this phase send tokens around. Decode has too few to cut in pieces."""
    return neuron.ep_dispatch_cc_option == "A2A" and neuron.sequence_parallel_enabled


def places_per_expert(spec: MoESpec, neuron: MoENeuronConfig) -> float:
    """The capacity factor: as asked, or such that an expert takes all tokens of every rank."""
    return neuron.capacity_factor or spec.num_experts / spec.top_k


def exchanged_bytes(spec: MoESpec, neuron: MoENeuronConfig, num_tokens: int) -> int:
    """What a rank sends to the others in one layer, there and back; num_tokens: of one rank."""
    factor = places_per_expert(spec, neuron)
    capacity = choose_capacity(num_tokens, spec.top_k, spec.num_experts, factor)
    others = neuron.tp_degree - 1
    num_values = spec.num_experts // neuron.tp_degree * others * capacity * spec.hidden_size
    return 2 * num_values * neuron.compute_dtype.itemsize

"""A limit to the tokens of an expert; later tokens go without it.

Source: arXiv:2101.03961 section 2.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi.modules.moe.all_experts import find_hits
from nxdi.modules.moe.experts import ExpertGroups
from nxdi.modules.moe.modulation import Late
from nxdi.modules.moe.router import Routing
from nxdi.modules.moe.slots import of_choice, places_in_queue, run_in_slots


@dataclass(frozen=True)
class CapacityFactor:
    """A dispatch strategy: an expert takes `factor` times an equal share of the graph's tokens.

    The weights of a token's other experts stay as they are.
    """

    modulation: Late
    factor: float

    def __call__(self, experts: ExpertGroups, x: Tensor, routing: Routing) -> Tensor:
        num_tokens, top_k = routing.experts.shape
        capacity = choose_capacity(num_tokens, top_k, experts.layout.num_experts, self.factor)
        hits = find_hits(experts, routing)
        numbers = torch.arange(experts.num_local, dtype=torch.int32, device=x.device)
        queue = places_in_queue(hits)
        slots = of_choice(numbers * capacity + queue, hits)
        is_kept = hits.any(dim=-1) & (of_choice(queue, hits) < capacity)
        slots = torch.where(is_kept, slots, -1)
        groups = experts.num_local, capacity
        return run_in_slots(experts, self.modulation, x, routing, slots, groups)


def choose_capacity(num_tokens: int, top_k: int, num_experts: int, factor: float) -> int:
    """The tokens of one expert, at least one."""
    return min(num_tokens, math.ceil(num_tokens * top_k * factor / num_experts))

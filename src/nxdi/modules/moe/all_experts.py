"""Every expert of the rank for every token: the definition, and the fastest way for few experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi.modules.moe.experts import ExpertGroups, Experts
from nxdi.modules.moe.modulation import Late
from nxdi.modules.moe.router import Routing


@dataclass(frozen=True)
class AllExperts:
    """A dispatch strategy: (experts, x [T, H], routing) -> this rank's part of the sum [T, H]."""

    modulation: Late

    def __call__(self, experts: Experts, x: Tensor, routing: Routing) -> Tensor:
        hits = find_hits(experts, routing)
        chosen = hits.any(dim=1).t().unsqueeze(-1)
        weight = (hits * routing.weights.unsqueeze(-1)).sum(dim=1).t().unsqueeze(-1)
        every = x.unsqueeze(0).expand(experts.num_local, -1, -1)
        y = experts(self.modulation.before(every, weight))
        return self.modulation.after(y, weight, chosen).sum(dim=0)


def find_hits(experts: ExpertGroups, routing: Routing) -> Tensor:
    """Which choice of each token is which expert of this rank, bool [T, top_k, num_local]."""
    numbers = torch.arange(experts.num_local, dtype=torch.int32, device=routing.experts.device)
    return experts.local(routing.experts).unsqueeze(-1) == numbers

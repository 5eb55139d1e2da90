"""Only the weights of the chosen experts: for decode, where reading weights is all the time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi.modules.moe.all_experts import AllExperts
from nxdi.modules.moe.experts import Experts
from nxdi.modules.moe.modulation import Late
from nxdi.modules.moe.router import Routing


@dataclass(frozen=True)
class SelectiveLoading:
    """A dispatch strategy: the weights of each token's experts are gathered, token by token.

    With as many choices as experts, all of them are computed: no weight is then read twice. An
    expert of another rank counts as this rank's first with weight 0, so that shapes are static.
    """

    modulation: Late

    def __call__(self, experts: Experts, x: Tensor, routing: Routing) -> Tensor:
        num_tokens, top_k = routing.experts.shape
        if num_tokens * top_k >= experts.num_local:
            return AllExperts(self.modulation)(experts, x, routing)
        local = experts.local(routing.experts)
        here = (local >= 0) & (local < experts.num_local)
        which = torch.where(here, local, 0).flatten()
        chosen = here.view(-1, 1, 1)
        weight = routing.weights.view(-1, 1, 1) * chosen
        rows = x.unsqueeze(1).expand(-1, top_k, -1).reshape(num_tokens * top_k, 1, -1)
        y = experts(self.modulation.before(rows, weight), which)
        y = self.modulation.after(y, weight, chosen)
        return y.view(num_tokens, top_k, -1).sum(dim=1)

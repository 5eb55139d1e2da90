"""Only the weights of the chosen experts: for decode, where reading weights is all the time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nxdi.kernels.ops import ExpertsCall
from nxdi.kernels.registry import Kernel, choose, register
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
        call = self._describe(experts, x, routing)
        out: Tensor = choose(CHOSEN_EXPERTS, call).run(self, experts, x, routing, call)
        return out

    def gather(self, experts: Experts, x: Tensor, routing: Routing, call: ExpertsCall) -> Tensor:
        """The result, from weights that are copied choice by choice."""
        if call.num_choices >= call.num_experts:
            return AllExperts(self.modulation)(experts, x, routing)
        own = experts.own(routing.experts)
        chosen = (own >= 0).view(-1, 1, 1)
        weight = routing.weights.view(-1, 1, 1) * chosen
        rows = x.unsqueeze(1).expand(-1, call.top_k, -1).reshape(call.num_choices, 1, -1)
        y = experts(self.modulation.before(rows, weight), own.clamp(min=0).flatten())
        y = self.modulation.after(y, weight, chosen)
        return y.view(call.num_tokens, call.top_k, -1).sum(dim=1)

    def _describe(self, experts: Experts, x: Tensor, routing: Routing) -> ExpertsCall:
        num_tokens, top_k = routing.experts.shape
        early = None if type(self.modulation) is Late else "tokens are weighed before the experts"
        num_experts, inner, hidden = experts.down_proj.shape
        return ExpertsCall(
            num_tokens=num_tokens,
            top_k=top_k,
            num_experts=num_experts,
            hidden_size=hidden,
            intermediate_size=inner,
            dtype=x.dtype,
            peculiarity=early or experts.peculiarity(x.dtype),
        )


CHOSEN_EXPERTS = "chosen_experts"
register(CHOSEN_EXPERTS, "generic", Kernel.plain(SelectiveLoading.gather))

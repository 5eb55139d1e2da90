"""The router: which experts each token goes to, and with what weight. In float32 throughout."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nxdi.kernels.ops import RouteCall
from nxdi.kernels.registry import Kernel, choose, register
from nxdi.modules.moe.spec import MoESpec

_NO_WEIGHT = 1e-20  # keeps a token whose scores are all zero from dividing by it


class Routing(NamedTuple):
    """Each token's choice. Shapes: weights float32 and experts int32, both [T, top_k].

    Expert -1 is none.
    """

    weights: Tensor
    experts: Tensor

    def without(self, left_out: Tensor) -> Routing:
        """The same, but some tokens (bool [T]) choose no expert."""
        return Routing(self.weights, torch.where(left_out.unsqueeze(1), -1, self.experts))


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1)


def _as_they_are(scores: Tensor) -> Tensor:
    return scores


_Activation = Callable[[Tensor], Tensor]
_ACTIVATIONS: dict[str, _Activation] = {
    "softmax": _softmax,
    "sigmoid": torch.sigmoid,
}


class Router(nn.Module):
    """Scores of all experts, and the best `top_k` of them as torch.topk orders and breaks ties.

    Shapes: x [T, hidden_size] -> Routing.  Source: arXiv:1701.06538; with groups and a bias for the
    selection arXiv:2412.19437.
    """

    def __init__(self, spec: MoESpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.spec = spec

        def parameter(*shape: int, dtype: torch.dtype = dtype) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)

        self.weight = parameter(spec.num_experts, spec.hidden_size)
        self.bias = parameter(spec.num_experts) if spec.router_bias else None
        self.e_score_correction_bias = None
        if spec.selection_bias:  # in 16 bits it would let other experts win
            self.e_score_correction_bias = parameter(spec.num_experts, dtype=torch.float32)
        act = _ACTIVATIONS[spec.router_act]
        self.score: _Activation = _as_they_are if spec.act_over_top_k else act
        self.weigh: _Activation = act if spec.act_over_top_k else _as_they_are

    def forward(self, x: Tensor) -> Routing:
        spec = self.spec
        call = RouteCall(
            num_tokens=x.shape[0],
            hidden_size=spec.hidden_size,
            num_experts=spec.num_experts,
            top_k=spec.top_k,
            dtype=x.dtype,
            weight_dtype=self.weight.dtype,
            act=spec.router_act,
            act_over_top_k=spec.act_over_top_k,
            normalize=spec.normalize,
            peculiarity=_peculiarity(spec),
        )
        weights, experts = choose(ROUTE, call).run(self, x, call)
        return Routing(weights * spec.scaling, experts)

    def choose_experts(self, x: Tensor, call: RouteCall) -> tuple[Tensor, Tensor]:
        """Weights and experts of `Routing`, before scaling."""
        bias = None if self.bias is None else self.bias.float()
        scores = self.score(F.linear(x.float(), self.weight.float(), bias))
        experts = torch.topk(self._ranking(scores), self.spec.top_k, dim=-1).indices.int()
        weights = self.weigh(torch.gather(scores, 1, experts.long()))
        if self.spec.normalize:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + _NO_WEIGHT)
        return weights, experts

    def _ranking(self, scores: Tensor) -> Tensor:
        """What experts are chosen by [T, E]."""
        if self.e_score_correction_bias is not None:
            scores = scores + self.e_score_correction_bias
        return scores if self.spec.num_groups == 1 else self._only_best_groups(scores)

    def _only_best_groups(self, scores: Tensor) -> Tensor:
        """Minus infinity outside the groups whose two best experts have the largest sums."""
        grouped = scores.unflatten(1, (self.spec.num_groups, -1))
        sums = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(dim=-1)
        best = sums.topk(self.spec.top_groups, dim=-1).indices.int()
        numbers = torch.arange(self.spec.num_groups, dtype=torch.int32, device=scores.device)
        is_best = (best.unsqueeze(-1) == numbers).any(dim=1)
        outside = scores.new_full((), float("-inf"))
        return torch.where(is_best.unsqueeze(-1), grouped, outside).flatten(1)


def _peculiarity(spec: MoESpec) -> str | None:
    """What a router has that others lack."""
    names = {
        "a bias": spec.router_bias,
        "a bias for the selection": spec.selection_bias,
        "groups of experts": spec.num_groups > 1,
    }
    return " and ".join(name for name, is_there in names.items() if is_there) or None


ROUTE = "route"
register(ROUTE, "generic", Kernel.plain(Router.choose_experts))

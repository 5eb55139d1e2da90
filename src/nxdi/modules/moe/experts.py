"""The routed experts of one rank, computed for groups of tokens with one expert each."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from nxdi.errors import ConfigError
from nxdi.modules.moe.glu import GLU, make_glu
from nxdi.modules.moe.spec import MoESpec
from nxdi.parallel_layers.layers import SPMDRank
from nxdi.parallel_layers.sharding import (
    ExpertBiasShard,
    ExpertLayout,
    ExpertShard,
    Shard,
    set_shard,
)

_PLAIN_GLU = GLU("silu", (None, None), (None, None))


class ExpertGroups(Protocol):
    """What fills places with tokens knows of experts. Shapes: as those of `Experts`."""

    layout: ExpertLayout
    num_local: int

    def local(self, experts: Tensor) -> Tensor: ...

    def __call__(self, x: Tensor, which: Tensor | None = None) -> Tensor: ...


class ExpertFormat(Protocol):
    """How the weights of all experts are stored."""

    def take(self, experts: nn.Module, name: str, which: Tensor | None, like: Tensor) -> Tensor:
        """The weight with this name, of `which` experts (default: all), in the dtype of `like`."""
        ...


class PlainExperts:
    """`getattr(experts, name)` is the weight; 16 bits are widened once they are taken."""

    def take(self, experts: nn.Module, name: str, which: Tensor | None, like: Tensor) -> Tensor:
        weight: Tensor = getattr(experts, name)
        return (weight if which is None else weight[which]).to(like.dtype)


class Experts(nn.Module):
    """down(glu(gate_up(x))) with this rank's part of this rank's experts.

    Shapes: x [G, N, hidden_size], which int32 [G] (default: group g is for expert g) -> the same as
    x, a part of a sum over ranks. The weights have all experts in one: gate_up_proj [E, H, 2 * I],
    down_proj [E, I, H].
    """

    WEIGHTS = ("gate_up_proj", "down_proj")
    weight_format: ExpertFormat = PlainExperts()

    def __init__(self, spec: MoESpec, layout: ExpertLayout, dtype: torch.dtype) -> None:
        super().__init__()
        if spec.num_experts % layout.ep_degree:
            raise ConfigError(
                f"{spec.num_experts} experts are not divisible by an expert-parallel degree of "
                f"{layout.ep_degree}; lower moe_ep_degree and raise moe_tp_degree"
            )
        self.layout, self.num_local = layout, layout.num_local
        self.glu = make_glu(spec)
        size, hidden = spec.intermediate_size, spec.hidden_size
        local = -(-size // layout.tp_degree)
        wide = 2 * local

        def parameter(shard: Shard, *shape: int) -> nn.Parameter:
            made = torch.empty(self.num_local, *shape, dtype=dtype)
            found = nn.Parameter(made, requires_grad=False)
            set_shard(found, shard)
            return found

        self.gate_up_proj = parameter(ExpertShard(layout, 2, size, parts=2), hidden, wide)
        self.down_proj = parameter(ExpertShard(layout, 1, size), local, hidden)
        self.gate_up_proj_bias = self.down_proj_bias = None
        if spec.experts_bias:
            self.gate_up_proj_bias = parameter(ExpertShard(layout, 1, size, parts=2), wide)
            self.down_proj_bias = parameter(ExpertBiasShard(layout), hidden)
        num_ranks = layout.tp_degree * layout.ep_degree
        self.rank_util = SPMDRank(num_ranks) if layout.ep_degree > 1 else None

    def local(self, experts: Tensor) -> Tensor:
        """The numbers of experts on this rank: 0 <= number < num_local, or else not here."""
        if self.rank_util is None:
            return experts
        rank = self.rank_util.get_rank()
        place = torch.div(rank, self.layout.tp_degree, rounding_mode="floor")
        return experts - place * self.num_local

    def own(self, experts: Tensor) -> Tensor:
        """`local`, but -1 for an expert that is not on this rank, and for none."""
        local = self.local(experts)
        is_here = (local >= 0) & (local < self.num_local)
        return torch.where(is_here, local, -1)

    def peculiarity(self, dtype: torch.dtype) -> str | None:
        """What other experts of tokens of `dtype` lack, if anything: kernels compute plain ones."""
        if not isinstance(self.weight_format, PlainExperts):
            return f"weights are stored as {type(self.weight_format).__name__}, not PlainExperts"
        if self.gate_up_proj.dtype != dtype:
            return f"activations are {dtype}, weights {self.gate_up_proj.dtype}"
        if self.gate_up_proj_bias is not None:
            return "the experts have biases"
        return None if self.glu == _PLAIN_GLU else f"the experts compute {self.glu}"

    def forward(self, x: Tensor, which: Tensor | None = None) -> Tensor:
        gate_up = self._project(x, "gate_up_proj", self.gate_up_proj_bias, which)
        return self._project(self.glu(gate_up), "down_proj", self.down_proj_bias, which)

    def _project(self, x: Tensor, name: str, bias: Tensor | None, which: Tensor | None) -> Tensor:
        """x @ weight of each group, plus its bias."""
        y = torch.bmm(x, self.weight_format.take(self, name, which, like=x))
        if bias is None:
            return y
        return y + (bias if which is None else bias[which]).to(x.dtype).unsqueeze(1)

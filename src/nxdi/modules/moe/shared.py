"""The expert that sees every token, beside those that are chosen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nxdi.modules.mlp import activation, split_gate_up
from nxdi.modules.moe.spec import MoESpec
from nxdi.parallel_layers.layers import ColumnParallelLinear, RowParallelLinear, linear


class SharedExperts(nn.Module):
    """A gated MLP, whose sum over ranks is left to the mixture.

    Shapes: x [T, hidden_size] -> this rank's part of a sum, the same. With a gate the result of
    each token is weighed by sigmoid(x @ gate), as in Qwen2-MoE.
    """

    def __init__(self, spec: MoESpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.act = activation(spec.hidden_act)
        hidden, size = spec.hidden_size, spec.shared_size

        def widen() -> ColumnParallelLinear:
            return ColumnParallelLinear(
                hidden, size, bias=False, gather_output=False, dtype=dtype, pad=True
            )

        self.gate_proj, self.up_proj = widen(), widen()
        self.down_proj = RowParallelLinear(
            size,
            hidden,
            bias=False,
            input_is_parallel=True,
            dtype=dtype,
            pad=True,
            reduce_output=False,
        )
        gate = torch.empty(1, hidden, dtype=dtype) if spec.has_shared_gate else None
        self.gate = None if gate is None else nn.Parameter(gate, requires_grad=False)

    def preshard_hook(self, model_state_dict: dict[str, Tensor], prefix: str) -> None:
        """Split a fused tensor in a full checkpoint; prefix: this module's path plus "weight"."""
        split_gate_up(model_state_dict, prefix.removesuffix("weight"))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return out if self.gate is None else out * torch.sigmoid(linear(x, self.gate))

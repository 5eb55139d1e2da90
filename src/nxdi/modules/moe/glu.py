"""What an expert computes between its projections: a gate times a value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi.modules.mlp import activation
from nxdi.modules.moe.spec import MoESpec

_Limits = tuple[float | None, float | None]


@dataclass(frozen=True)
class GLU:
    """act(gate) * up, both within limits if there are any.

    Shapes: [..., 2 * I], gate before up -> [..., I].
    """

    act: str
    gate_limits: _Limits
    up_limits: _Limits

    def __call__(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self.combine(_within(gate, self.gate_limits), _within(up, self.up_limits))

    def combine(self, gate: Tensor, up: Tensor) -> Tensor:
        return activation(self.act)(gate) * up


@dataclass(frozen=True)
class ScaledSwiGLU(GLU):
    """gate * sigmoid(scale * gate) * (up + offset), as in GPT-OSS."""

    scale: float
    offset: float

    def combine(self, gate: Tensor, up: Tensor) -> Tensor:
        return gate * torch.sigmoid(self.scale * gate) * (up + self.offset)


def make_glu(spec: MoESpec) -> GLU:
    """The formula that `spec` names. Raises: ConfigError for an unknown activation."""
    activation(spec.hidden_act)
    gate_limits = spec.gate_clamp_lower_limit, spec.gate_clamp_upper_limit
    up_limits = spec.up_clamp_lower_limit, spec.up_clamp_upper_limit
    if spec.glu_type == "glu":
        return GLU(spec.hidden_act, gate_limits, up_limits)
    scale, offset = spec.hidden_act_scaling_factor, spec.hidden_act_bias
    return ScaledSwiGLU(spec.hidden_act, gate_limits, up_limits, scale, offset)


def _within(x: Tensor, limits: _Limits) -> Tensor:
    return x if limits == (None, None) else x.clamp(*limits)

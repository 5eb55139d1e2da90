"""Layers whose input is quantized as well: the rule, the product, and the layers that have it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nxdi.config.activation_quantization import ActivationQuantization
from nxdi.kernels.ops import Int8Call
from nxdi.kernels.reference.int8 import INT8_LINEAR
from nxdi.kernels.registry import choose
from nxdi.modules.quantization.scaled import ScaledWeight
from nxdi.parallel_layers.layers import BaseParallelLinear


@dataclass(frozen=True)
class QuantizedInput(ScaledWeight):
    """What the weight is multiplied with is x in as few bits, times a scale.

    The scale of a token is that of what a rank has of it.
    """

    rule: ActivationQuantization

    def multiply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        few, scale = quantize_activations(x, self.rule, getattr(layer, "input_scale", None))
        if self.rule.dtype is not torch.int8:
            return super().multiply(layer, (few.float() * scale).to(x.dtype), bias)
        call = Int8Call(x.shape[-1])
        sums: Tensor = choose(INT8_LINEAR, call).run(few, layer.weight, call)
        units: Tensor = layer.scale  # type: ignore[assignment]  # a parameter
        y = (sums.float() * scale * units.view(-1)).to(x.dtype)
        return y if bias is None else y + bias.to(x.dtype)


def quantize_activations(
    x: Tensor, rule: ActivationQuantization, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x in few bits, and the float32 scales of its tokens; rounds to nearest, ties to even.

    Shapes: x [..., K] -> [..., K] and [..., 1]; `scale` is the static one, [1].
    A token that is not finite has a scale that is not finite, and so a result that is none.
    """
    wide = x.float().clamp(-rule.clamp, rule.clamp)
    if scale is None:
        scale = wide.abs().amax(-1, keepdim=True) / rule.bound
        # Zeros have no scale of their own, and subnormal ones would lose bits.
        scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    stored = (wide / scale).clamp(-rule.bound, rule.bound)
    if not rule.dtype.is_floating_point:
        stored = stored.round()
    return stored.to(rule.dtype), scale


def quantizable_inputs(model: nn.Module) -> Iterator[tuple[str, BaseParallelLinear]]:
    """The linear layers whose weights have a product with quantized inputs, by name."""
    for name, module in model.named_modules():
        if isinstance(module, BaseParallelLinear) and isinstance(
            module.weight_format, ScaledWeight
        ):
            yield name, module


def quantize_inputs(model: nn.Module, rule: ActivationQuantization) -> None:
    """Let every linear layer with quantized weights quantize its input, by `rule`."""
    for _, module in quantizable_inputs(model):
        assert isinstance(module.weight_format, ScaledWeight)
        module.weight_format = QuantizedInput(**vars(module.weight_format), rule=rule)
        if rule.is_static:
            module.input_scale = nn.Parameter(torch.empty(1), requires_grad=False)

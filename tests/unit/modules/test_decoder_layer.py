from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nxdi.modules.attention import AttentionOutput
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from tiny_modules import drawn, filled, tiny_config


class Attention(nn.Module):
    """Stands in for attention: doubles, and keeps the context it was given."""

    def forward(self, x: Tensor, *, ctx: Any) -> AttentionOutput:
        self.ctx = ctx
        return AttentionOutput(2 * x)


class Tripled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


def make_layer() -> PreNormDecoderLayer:
    return PreNormDecoderLayer(tiny_config(), Attention(), Tripled())  # type: ignore[arg-type]  # stand-in


def test_residuals_around_normalised_blocks() -> None:
    layer, x = filled(make_layer), drawn(2, 3, 16)
    middle = x + 2 * layer.input_layernorm(x)
    expected = middle + 3 * layer.post_attention_layernorm(middle)
    assert torch.equal(layer(x, ctx="the step"), expected)
    assert layer.self_attn.ctx == "the step"


def test_norms_take_eps_and_dtype_from_the_config() -> None:
    config = tiny_config({"rms_norm_eps": 0.25}, torch_dtype=torch.bfloat16)
    layer = PreNormDecoderLayer(config, Attention(), Tripled())  # type: ignore[arg-type]  # stand-in
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        assert norm.variance_epsilon == 0.25
        assert norm.weight.dtype == torch.bfloat16

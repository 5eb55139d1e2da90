"""Decoder layers, by where their norms stand.

self_attn: takes [B, S, hidden_size] and `ctx`, returns an `AttentionOutput`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.modules.context import LayerContext
from nxdi.modules.norm import hidden_norm


class PreNormDecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Shapes: x [B, S, hidden_size] -> same (S / tp with sequence parallelism). make_norm: one norm
    over the hidden size, called twice (default: RMSNorm).
    """

    def __init__(
        self,
        config: InferenceConfig,
        self_attn: nn.Module,
        mlp: nn.Module,
        make_norm: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        make_norm = make_norm or (lambda: hidden_norm(config))
        self.input_layernorm = make_norm()
        self.self_attn = self_attn
        self.post_attention_layernorm = make_norm()
        self.mlp = mlp

    def forward(self, x: Tensor, *, ctx: LayerContext) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), ctx=ctx).hidden_states
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class PostNormDecoderLayer(nn.Module):
    """x + norm(attention(x)), then x + norm(mlp(x)).

    Shapes: x [B, S, hidden_size] -> same (S / tp with sequence parallelism).
    """

    def __init__(self, config: InferenceConfig, self_attn: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.post_attention_layernorm = hidden_norm(config)
        self.mlp = mlp
        self.post_feedforward_layernorm = hidden_norm(config)

    def forward(self, x: Tensor, *, ctx: LayerContext) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(x, ctx=ctx).hidden_states)
        out: Tensor = x + self.post_feedforward_layernorm(self.mlp(x))
        return out


class SandwichNormDecoderLayer(nn.Module):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x))).

    Shapes: x [B, S, hidden_size] -> same (S / tp with sequence parallelism). make_norm: one norm
    over the hidden size; it is called four times.
    """

    def __init__(
        self,
        self_attn: nn.Module,
        mlp: nn.Module,
        make_norm: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.input_layernorm = make_norm()
        self.self_attn = self_attn
        self.post_attention_layernorm = make_norm()
        self.pre_feedforward_layernorm = make_norm()
        self.mlp = mlp
        self.post_feedforward_layernorm = make_norm()

    def forward(self, x: Tensor, *, ctx: LayerContext) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), ctx=ctx).hidden_states
        x = x + self.post_attention_layernorm(attended)
        out: Tensor = x + self.post_feedforward_layernorm(
            self.mlp(self.pre_feedforward_layernorm(x))
        )
        return out


class ParallelDecoderLayer(nn.Module):
    """x + attention(norm(x)) + mlp(norm(x)), with one norm for both.

    Shapes: x [B, S, hidden_size] -> same (S / tp with sequence parallelism).
    """

    def __init__(
        self, self_attn: nn.Module, mlp: nn.Module, make_norm: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.input_layernorm = make_norm()
        self.self_attn = self_attn
        self.mlp = mlp

    def forward(self, x: Tensor, *, ctx: LayerContext) -> Tensor:
        normed = self.input_layernorm(x)
        out: Tensor = x + self.self_attn(normed, ctx=ctx).hidden_states + self.mlp(normed)
        return out


class TwoNormParallelDecoderLayer(PreNormDecoderLayer):
    """x + attention(norm(x)) + mlp(norm(x)), with a norm for each: GPT-J's form in GPT-NeoX."""

    def forward(self, x: Tensor, *, ctx: LayerContext) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), ctx=ctx).hidden_states
        out: Tensor = x + attended + self.mlp(self.post_attention_layernorm(x))
        return out

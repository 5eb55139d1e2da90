"""The pre-norm decoder layer that Llama and most of its relatives share."""

from __future__ import annotations

from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.context import LayerContext
from nxdi.modules.norm import RMSNorm


class PreNormDecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Shapes: x [B, S, hidden_size] -> same (S / tp with sequence parallelism).
    """

    def __init__(
        self, config: InferenceConfig, self_attn: NeuronAttentionBase, mlp: nn.Module
    ) -> None:
        super().__init__()
        dtype = config.neuron_config.torch_dtype
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.self_attn = self_attn
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.mlp = mlp

    def forward(self, x: Tensor, *, ctx: LayerContext) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), ctx=ctx).hidden_states
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out

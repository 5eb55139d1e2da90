"""Command R7B, Command A: attention beside the MLP, positions in windowed layers only.

Source: arXiv:2504.00698 section 2; weights as in Hugging Face's Cohere2ForCausalLM.
"""

from __future__ import annotations

from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.decoder_layer import ParallelDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.norm import LayerNorm
from nxdi.modules.rope import InterleavedRotaryEmbedding, rope_from_config


class Cohere2InferenceConfig(InferenceConfig):
    """The Hugging Face attributes this decoder reads; `logit_scale` multiplies."""

    def get_required_attributes(self) -> list[str]:
        return [
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
            "hidden_act",
            "layer_norm_eps",
            "logit_scale",
            "rope_theta",
            "max_position_embeddings",
            "sliding_window",
            "layer_types",
        ]


class NeuronCohere2Attention(NeuronAttentionBase):
    def __init__(self, config: InferenceConfig, layer_type: str) -> None:
        window = config.sliding_window if layer_type == "sliding_attention" else None
        has_bias = getattr(config, "attention_bias", False)
        has_positions = window is not None
        super().__init__(
            config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_emb=(
                rope_from_config(config, rotary_cls=InterleavedRotaryEmbedding)
                if has_positions
                else None
            ),
            qkv_bias=has_bias,
            o_bias=has_bias,
            sliding_window=window,
        )


class NeuronCohere2Model(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            ParallelDecoderLayer(
                NeuronCohere2Attention(config, layer_type),
                GatedMLP(config),
                lambda: _layer_norm(config),
            )
            for layer_type in config.layer_types
        )
        self.norm = _layer_norm(config)
        self.logit_scale: float = config.logit_scale

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x) * self.logit_scale


class NeuronCohere2ForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronCohere2Model
    _config_cls = Cohere2InferenceConfig


def _layer_norm(config: InferenceConfig) -> LayerNorm:
    dtype = config.neuron_config.torch_dtype
    return LayerNorm(config.hidden_size, config.layer_norm_eps, dtype, bias=False)

"""Llama 1 to 3.3: dense decoder, grouped-query attention, rotary positions, gated MLP.

Source: arXiv:2302.13971, arXiv:2307.09288, arXiv:2407.21783; weights as in Hugging Face's
LlamaForCausalLM.
"""

from __future__ import annotations

from torch import nn

from nxdi.config import InferenceConfig
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.decoder import NeuronBaseModel
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.norm import RMSNorm
from nxdi.modules.rope import rope_from_config


class LlamaInferenceConfig(InferenceConfig):
    """The Hugging Face attributes this decoder reads."""

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
            "rms_norm_eps",
            "rope_theta",
            "max_position_embeddings",
        ]


class NeuronLlamaAttention(NeuronAttentionBase):
    def __init__(self, config: InferenceConfig) -> None:
        has_bias = getattr(config, "attention_bias", False)
        super().__init__(
            config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_emb=rope_from_config(config),
            qkv_bias=has_bias,
            o_bias=has_bias,
        )


class NeuronLlamaDecoderLayer(PreNormDecoderLayer):
    def __init__(self, config: InferenceConfig) -> None:
        mlp = GatedMLP(config, bias=getattr(config, "mlp_bias", False))
        super().__init__(config, NeuronLlamaAttention(config), mlp)


class NeuronLlamaModel(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            NeuronLlamaDecoderLayer(config) for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, config.neuron_config.torch_dtype
        )


class NeuronLlamaForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronLlamaModel
    _config_cls = LlamaInferenceConfig

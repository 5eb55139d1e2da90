"""Qwen3: Qwen2's decoder with a norm on each query and key head instead of biases.

Source: arXiv:2505.09388; weights as in Hugging Face's Qwen3ForCausalLM.
"""

from __future__ import annotations

from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.models.qwen2.modeling_qwen2 import Qwen2InferenceConfig
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.norm import RMSNorm
from nxdi.modules.rope import rope_from_config


class Qwen3InferenceConfig(Qwen2InferenceConfig):
    """Qwen2's attributes; `head_dim` need not be hidden_size / num_attention_heads."""


class NeuronQwen3Attention(NeuronAttentionBase):
    def __init__(self, config: InferenceConfig, layer_type: str) -> None:
        has_bias = getattr(config, "attention_bias", False)
        dtype = config.neuron_config.torch_dtype
        super().__init__(
            config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_emb=rope_from_config(config),
            qkv_bias=has_bias,
            o_bias=has_bias,
            q_layernorm=RMSNorm(config.head_dim, config.rms_norm_eps, dtype),
            k_layernorm=RMSNorm(config.head_dim, config.rms_norm_eps, dtype),
            sliding_window=config.sliding_window if layer_type == "sliding_attention" else None,
        )


class NeuronQwen3Model(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            PreNormDecoderLayer(config, NeuronQwen3Attention(config, layer_type), GatedMLP(config))
            for layer_type in config.layer_types
        )
        self.norm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, config.neuron_config.torch_dtype
        )


class NeuronQwen3ForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronQwen3Model
    _config_cls = Qwen3InferenceConfig

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        return rename_head_norms(state_dict)


def rename_head_norms(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's names of the norms on queries and keys -> the attention's."""
    return {
        name.replace(".q_norm.", ".q_layernorm.").replace(".k_norm.", ".k_layernorm."): tensor
        for name, tensor in state_dict.items()
    }

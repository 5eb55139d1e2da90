"""Gemma 3, text only: Gemma 2 with norms on query and key heads, and two rotary embeddings.

Five layers of six see a window and turn slowly growing angles (`rope_parameters` of
"sliding_attention"), the sixth sees everything with its own.

Source: arXiv:2503.19786; weights as in Hugging Face's Gemma3ForCausalLM.
"""

from __future__ import annotations

from torch import Tensor

from nxdi.config import InferenceConfig
from nxdi.models.gemma2.modeling_gemma2 import Gemma2InferenceConfig, NeuronGemma2Model
from nxdi.models.model_base import NeuronBaseForCausalLM
from nxdi.models.qwen3.modeling_qwen3 import rename_head_norms
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.norm import UnitOffsetRMSNorm
from nxdi.modules.rope import rope_from_config


class Gemma3InferenceConfig(Gemma2InferenceConfig):
    """Gemma 2's attributes; `rope_parameters` has one entry per layer type."""

    def get_required_attributes(self) -> list[str]:
        return [*super().get_required_attributes(), "rope_parameters"]


class NeuronGemma3Attention(NeuronAttentionBase):
    def __init__(self, config: InferenceConfig, layer_type: str) -> None:
        has_bias = getattr(config, "attention_bias", False)
        dtype = config.neuron_config.torch_dtype
        super().__init__(
            config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_emb=rope_from_config(config, config.rope_parameters[layer_type]),
            qkv_bias=has_bias,
            o_bias=has_bias,
            q_layernorm=UnitOffsetRMSNorm(config.head_dim, config.rms_norm_eps, dtype),
            k_layernorm=UnitOffsetRMSNorm(config.head_dim, config.rms_norm_eps, dtype),
            scale=config.query_pre_attn_scalar**-0.5,
            sliding_window=config.sliding_window if layer_type == "sliding_attention" else None,
        )


class NeuronGemma3Model(NeuronGemma2Model):
    def make_attention(self, config: InferenceConfig, layer_type: str) -> NeuronAttentionBase:
        return NeuronGemma3Attention(config, layer_type)


class NeuronGemma3ForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronGemma3Model
    _config_cls = Gemma3InferenceConfig

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        return rename_head_norms(state_dict)

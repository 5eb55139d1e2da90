"""Qwen2 and Qwen2.5: Llama's decoder with biases on q, k and v, and windows on some layers.

Source: arXiv:2407.10671; weights as in Hugging Face's Qwen2ForCausalLM.
"""

from __future__ import annotations

from torch import nn

from nxdi.config import InferenceConfig
from nxdi.models.llama.modeling_llama import LlamaInferenceConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.norm import RMSNorm
from nxdi.modules.rope import rope_from_config


class Qwen2InferenceConfig(LlamaInferenceConfig):
    """Llama's attributes; `layer_types` says which layers see only `sliding_window` tokens."""

    def get_required_attributes(self) -> list[str]:
        return [*super().get_required_attributes(), "sliding_window", "layer_types"]


class NeuronQwen2Attention(NeuronAttentionBase):
    def __init__(self, config: InferenceConfig, layer_type: str) -> None:
        super().__init__(
            config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_emb=rope_from_config(config),
            qkv_bias=True,
            sliding_window=config.sliding_window if layer_type == "sliding_attention" else None,
        )


class NeuronQwen2Model(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            PreNormDecoderLayer(config, NeuronQwen2Attention(config, layer_type), GatedMLP(config))
            for layer_type in config.layer_types
        )
        self.norm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, config.neuron_config.torch_dtype
        )


class NeuronQwen2ForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronQwen2Model
    _config_cls = Qwen2InferenceConfig

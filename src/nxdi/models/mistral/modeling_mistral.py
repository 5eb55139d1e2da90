"""Mistral: Llama's decoder with a sliding attention window.

Source: arXiv:2310.06825; weights as in Hugging Face's MistralForCausalLM.
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


class MistralInferenceConfig(LlamaInferenceConfig):
    """Llama's attributes and the window (None: attention sees everything)."""

    def get_required_attributes(self) -> list[str]:
        return [*super().get_required_attributes(), "sliding_window"]


class NeuronMistralAttention(NeuronAttentionBase):
    def __init__(self, config: InferenceConfig) -> None:
        super().__init__(
            config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_emb=rope_from_config(config),
            sliding_window=config.sliding_window,
        )


class NeuronMistralModel(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            PreNormDecoderLayer(config, NeuronMistralAttention(config), GatedMLP(config))
            for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, config.neuron_config.torch_dtype
        )


class NeuronMistralForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronMistralModel
    _config_cls = MistralInferenceConfig

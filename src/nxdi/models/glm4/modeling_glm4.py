"""GLM-4-0414: norms before and after both blocks, neighbours turned in half of each head.

Source: arXiv:2406.12793; weights as in Hugging Face's Glm4ForCausalLM.
"""

from __future__ import annotations

from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.models.llama.modeling_llama import LlamaInferenceConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.decoder_layer import SandwichNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.norm import hidden_norm
from nxdi.modules.rope import InterleavedRotaryEmbedding, rope_from_config


class Glm4InferenceConfig(LlamaInferenceConfig):
    """Llama's attributes and the part of each head that is turned."""

    def get_required_attributes(self) -> list[str]:
        return [*super().get_required_attributes(), "partial_rotary_factor", "attention_bias"]


class NeuronGlm4Attention(NeuronAttentionBase):
    def __init__(self, config: InferenceConfig) -> None:
        super().__init__(
            config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_emb=rope_from_config(config, rotary_cls=InterleavedRotaryEmbedding),
            qkv_bias=config.attention_bias,
        )


class NeuronGlm4Model(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            SandwichNormDecoderLayer(
                NeuronGlm4Attention(config), GatedMLP(config), lambda: hidden_norm(config)
            )
            for _ in range(config.num_hidden_layers)
        )
        self.norm = hidden_norm(config)


class NeuronGlm4ForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronGlm4Model
    _config_cls = Glm4InferenceConfig

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        converted = {}
        for name, tensor in state_dict.items():
            for old, new in _NAMES:
                name = name.replace(old, new)
            converted[name] = tensor
        return converted


# In this order: what is `post_attention` in the checkpoint stands before the MLP.
_NAMES = (
    (".post_attention_layernorm.", ".pre_feedforward_layernorm."),
    (".post_self_attn_layernorm.", ".post_attention_layernorm."),
    (".post_mlp_layernorm.", ".post_feedforward_layernorm."),
)

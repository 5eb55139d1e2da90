"""OLMo 2: norms after attention and MLP instead of before, and over all query and key heads.

Source: arXiv:2501.00656; weights as in Hugging Face's Olmo2ForCausalLM.
"""

from __future__ import annotations

from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.models.llama.modeling_llama import LlamaInferenceConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.models.qwen3.modeling_qwen3 import rename_head_norms
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.decoder_layer import PostNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.norm import AllHeadsRMSNorm, RMSNorm
from nxdi.modules.rope import rope_from_config


class NeuronOlmo2Attention(NeuronAttentionBase):
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

        def norm(heads: tuple[tuple[int, ...], ...], num_heads: int) -> AllHeadsRMSNorm:
            return AllHeadsRMSNorm(
                heads, num_heads, self.head_dim, config.rms_norm_eps, self.torch_dtype
            )

        self.q_layernorm = norm(self.layout.q, config.num_attention_heads)
        self.k_layernorm = norm(self.layout.kv, config.num_key_value_heads)


class NeuronOlmo2Model(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            PostNormDecoderLayer(config, NeuronOlmo2Attention(config), GatedMLP(config))
            for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, config.neuron_config.torch_dtype
        )


class NeuronOlmo2ForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronOlmo2Model
    _config_cls = LlamaInferenceConfig

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        return rename_head_norms(state_dict)

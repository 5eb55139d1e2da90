"""Llama 4, text only: chunks with positions, and whole contexts without.

Most layers turn neighbours and see one chunk. The others know no positions and see everything;
there queries grow with their place in the text. Some layers have experts, one of which every token
sees; what the others get is weighed before they see it.

Source: Meta's Llama 4 model card (2025); layers without positions and the temperature of their
attention: arXiv:2501.19399; weights as in Hugging Face's Llama4ForCausalLM.
"""

from __future__ import annotations

from torch import Tensor, nn

from nxdi.config import InferenceConfig, MoENeuronConfig, NeuronConfig
from nxdi.errors import ConfigError
from nxdi.models.llama.modeling_llama import LlamaInferenceConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.models.smollm3.modeling_smollm3 import check_no_rope_layers
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.attention.temperature import TunedQueries
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.moe import MoE, MoESpec, make_moe
from nxdi.modules.norm import RMSNorm, UnweightedRMSNorm
from nxdi.modules.rope import InterleavedRotaryEmbedding, rope_from_config


class Llama4InferenceConfig(LlamaInferenceConfig):
    """Llama's attributes, and of each layer: `no_rope_layers` (1: it has RoPE), `layer_types`.

    `intermediate_size` is that of an expert, `intermediate_size_mlp` that of dense layers.
    """

    def get_required_attributes(self) -> list[str]:
        return [
            *super().get_required_attributes(),
            *("intermediate_size_mlp", "moe_layers", "no_rope_layers", "layer_types"),
            *("num_local_experts", "num_experts_per_tok"),
            *("attention_chunk_size", "use_qk_norm"),
            *("attn_temperature_tuning", "attn_scale", "floor_scale"),
        ]

    def validate_config(self) -> None:
        super().validate_config()
        check_no_rope_layers(self)
        if "chunked_attention" in self.layer_types and self.attention_chunk_size is None:
            raise ConfigError(
                "layer_types has chunked_attention, but attention_chunk_size is None; give its size"
            )

    @classmethod
    def get_neuron_config_cls(cls) -> type[NeuronConfig]:
        return MoENeuronConfig


class NeuronLlama4Attention(NeuronAttentionBase):
    """The attention of one layer, with RoPE if `has_positions`."""

    def __init__(self, config: InferenceConfig, layer_type: str, has_positions: bool) -> None:
        rope = rope_from_config(config, rotary_cls=InterleavedRotaryEmbedding)
        # The model normalises heads after it has turned them, which is the same: turning keeps
        # their size.
        has_norms = has_positions and config.use_qk_norm
        is_chunked = layer_type == "chunked_attention"
        super().__init__(
            config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_emb=rope if has_positions else None,
            qkv_bias=config.attention_bias,
            o_bias=config.attention_bias,
            q_layernorm=UnweightedRMSNorm(config.rms_norm_eps) if has_norms else None,
            k_layernorm=UnweightedRMSNorm(config.rms_norm_eps) if has_norms else None,
            attention_chunk_size=config.attention_chunk_size if is_chunked else None,
        )


class NeuronLlama4TunedAttention(TunedQueries, NeuronLlama4Attention):
    """Without positions; queries grow with the logarithm of their position."""

    def __init__(self, config: InferenceConfig, layer_type: str) -> None:
        super().__init__(config, layer_type, has_positions=False)
        self.attn_scale, self.floor_scale = config.attn_scale, config.floor_scale


def _attention(config: InferenceConfig, layer: int) -> NeuronLlama4Attention:
    layer_type, has_positions = config.layer_types[layer], bool(config.no_rope_layers[layer])
    if config.attn_temperature_tuning and not has_positions:
        return NeuronLlama4TunedAttention(config, layer_type)
    return NeuronLlama4Attention(config, layer_type, has_positions)


def _mixture(config: InferenceConfig) -> MoE:
    spec = MoESpec(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_experts=config.num_local_experts,
        top_k=config.num_experts_per_tok,
        hidden_act=config.hidden_act,
        router_act="sigmoid",
        normalize=False,
        early_expert_affinity_modulation=True,
        shared_size=config.intermediate_size,
    )
    return make_moe(config, spec)


class NeuronLlama4Model(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            PreNormDecoderLayer(
                config,
                _attention(config, layer),
                _mixture(config)
                if layer in config.moe_layers
                else GatedMLP(config, intermediate_size=config.intermediate_size_mlp),
            )
            for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, config.neuron_config.torch_dtype
        )


class NeuronLlama4ForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronLlama4Model
    _config_cls = Llama4InferenceConfig

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        return {
            name.replace(".feed_forward.", ".mlp.").replace(
                ".shared_expert.", ".shared_experts."
            ): tensor
            for name, tensor in state_dict.items()
        }

"""SmolLM3: Llama's decoder, some of whose layers know no positions (every fourth, as published).

Source: SmolLM3 report (Hugging Face, 2025); layers without positions: arXiv:2501.18795. Weights as
in Hugging Face's SmolLM3ForCausalLM.
"""

from __future__ import annotations

from torch import nn

from nxdi.config import InferenceConfig
from nxdi.errors import ConfigError
from nxdi.models.llama.modeling_llama import LlamaInferenceConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.norm import RMSNorm
from nxdi.modules.rope import rope_from_config


class SmolLM3InferenceConfig(LlamaInferenceConfig):
    """Llama's attributes, and of each layer: `no_rope_layers` (1: it has RoPE), `layer_types`."""

    def get_required_attributes(self) -> list[str]:
        own = ["no_rope_layers", "layer_types", "sliding_window"]
        return [*super().get_required_attributes(), *own]

    def validate_config(self) -> None:
        super().validate_config()
        check_no_rope_layers(self)


def check_no_rope_layers(config: InferenceConfig) -> None:
    """Raises: ConfigError unless there is one entry per layer."""
    if len(config.no_rope_layers) != config.num_hidden_layers:
        raise ConfigError(
            f"no_rope_layers has {len(config.no_rope_layers)} entries, num_hidden_layers="
            f"{config.num_hidden_layers}; give one entry per layer"
        )


class NeuronSmolLM3Attention(NeuronAttentionBase):
    def __init__(self, config: InferenceConfig, layer: int) -> None:
        is_windowed = config.layer_types[layer] == "sliding_attention"
        has_bias = getattr(config, "attention_bias", False)
        super().__init__(
            config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_emb=rope_from_config(config) if config.no_rope_layers[layer] else None,
            qkv_bias=has_bias,
            o_bias=has_bias,
            sliding_window=config.sliding_window if is_windowed else None,
        )


class NeuronSmolLM3DecoderLayer(PreNormDecoderLayer):
    def __init__(self, config: InferenceConfig, layer: int) -> None:
        mlp = GatedMLP(config, bias=getattr(config, "mlp_bias", False))
        super().__init__(config, NeuronSmolLM3Attention(config, layer), mlp)


class NeuronSmolLM3Model(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            NeuronSmolLM3DecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, config.neuron_config.torch_dtype
        )


class NeuronSmolLM3ForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronSmolLM3Model
    _config_cls = SmolLM3InferenceConfig

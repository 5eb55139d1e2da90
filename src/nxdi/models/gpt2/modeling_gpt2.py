"""GPT-2: learned positions, layer norms before each block, a plain MLP, biases everywhere.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019); weights as in
Hugging Face's GPT2LMHeadModel, which stores projections as [input, output] and q, k, v in one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.errors import ConfigError
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends, embedding
from nxdi.modules.mlp import PlainMLP
from nxdi.modules.norm import LayerNorm


class GPT2InferenceConfig(InferenceConfig):
    """GPT-2's attributes, and `intermediate_size` and `hidden_act` under their usual names."""

    def add_derived_config(self) -> None:
        if hasattr(self, "n_embd") and hasattr(self, "activation_function"):
            self.intermediate_size = getattr(self, "n_inner", None) or 4 * self.n_embd
            self.hidden_act = self.activation_function

    def get_required_attributes(self) -> list[str]:
        return [
            "n_embd",
            "n_layer",
            "n_head",
            "n_positions",
            "vocab_size",
            "activation_function",
            "layer_norm_epsilon",
            "scale_attn_weights",
            "scale_attn_by_inverse_layer_idx",
        ]

    def validate_config(self) -> None:
        super().validate_config()
        longest = self.neuron_config.max_length
        if longest > self.n_positions:
            raise ConfigError(
                f"max_length={longest} is more than the n_positions={self.n_positions} that the "
                "model has learned; lower seq_len (or max_length)"
            )


class NeuronGPT2Attention(NeuronAttentionBase):
    def __init__(self, config: InferenceConfig, layer: int) -> None:
        head_dim = config.n_embd // config.n_head
        scale = head_dim**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            scale /= layer + 1
        super().__init__(
            config,
            hidden_size=config.n_embd,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_head,
            head_dim=head_dim,
            qkv_bias=True,
            o_bias=True,
            scale=scale,
        )


class NeuronGPT2DecoderLayer(PreNormDecoderLayer):
    def __init__(self, config: InferenceConfig, layer: int) -> None:
        attention = NeuronGPT2Attention(config, layer)
        super().__init__(config, attention, PlainMLP(config), lambda: _layer_norm(config))


class NeuronGPT2Model(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.embed_positions = embedding(config, config.n_positions)
        self.layers = nn.ModuleList(
            NeuronGPT2DecoderLayer(config, layer) for layer in range(config.n_layer)
        )
        self.norm = _layer_norm(config)

    def embed(self, inputs: Mapping[str, Tensor]) -> Tensor:
        positions: Tensor = self.embed_positions(self.order_of(inputs).places.clamp(min=0))
        x = super().embed(inputs)
        return x + positions.to(x.dtype)


class NeuronGPT2LMHeadModel(NeuronBaseForCausalLM):
    _model_cls = NeuronGPT2Model
    _config_cls = GPT2InferenceConfig
    _STATE_DICT_MODEL_PREFIX = "transformer."

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        converted = {}
        for name, tensor in state_dict.items():
            if _MASK.search(name):
                continue
            is_transposed = name.endswith(_PROJECTIONS)
            for pattern, replacement in _NAMES:
                name = re.sub(pattern, replacement, name)
            converted[name] = tensor.t() if is_transposed else tensor
        return converted


def _layer_norm(config: InferenceConfig) -> LayerNorm:
    return LayerNorm(config.n_embd, config.layer_norm_epsilon, config.neuron_config.torch_dtype)


_PROJECTIONS = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
# The causal mask, which older checkpoints have as a tensor.
_MASK = re.compile(r"\.attn\.(masked_)?bias$")
_NAMES = (
    (r"^wte\.", "embed_tokens."),
    (r"^wpe\.", "embed_positions."),
    (r"^ln_f\.", "norm."),
    (r"^h\.", "layers."),
    (r"\.ln_1\.", ".input_layernorm."),
    (r"\.ln_2\.", ".post_attention_layernorm."),
    (r"\.attn\.c_attn\.", ".self_attn.Wqkv."),
    (r"\.attn\.c_proj\.", ".self_attn.o_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.up_proj."),
    (r"\.mlp\.c_proj\.", ".mlp.down_proj."),
)

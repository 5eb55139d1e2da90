"""GPT-NeoX and Pythia: layer norms, a plain MLP beside or behind attention, part of a head turned.

Source: arXiv:2204.06745, arXiv:2304.01373; weights as in Hugging Face's GPTNeoXForCausalLM, which
stores q, k and v of each head one after the other.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.decoder_layer import PreNormDecoderLayer, TwoNormParallelDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.mlp import PlainMLP
from nxdi.modules.norm import LayerNorm
from nxdi.modules.rope import rope_from_config


class GPTNeoXInferenceConfig(InferenceConfig):
    """The Hugging Face attributes this decoder reads."""

    def get_required_attributes(self) -> list[str]:
        return [
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "head_dim",
            "vocab_size",
            "hidden_act",
            "layer_norm_eps",
            "rope_theta",
            "partial_rotary_factor",
            "max_position_embeddings",
            "use_parallel_residual",
            "attention_bias",
        ]


class NeuronGPTNeoXAttention(NeuronAttentionBase):
    def __init__(self, config: InferenceConfig) -> None:
        super().__init__(
            config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_attention_heads,
            head_dim=config.head_dim,
            rotary_emb=rope_from_config(config),
            qkv_bias=config.attention_bias,
            o_bias=config.attention_bias,
        )


class NeuronGPTNeoXModel(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        layer_cls = (
            TwoNormParallelDecoderLayer if config.use_parallel_residual else PreNormDecoderLayer
        )
        self.layers = nn.ModuleList(
            layer_cls(
                config,
                NeuronGPTNeoXAttention(config),
                PlainMLP(config),
                lambda: _layer_norm(config),
            )
            for _ in range(config.num_hidden_layers)
        )
        self.norm = _layer_norm(config)


class NeuronGPTNeoXForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronGPTNeoXModel
    _config_cls = GPTNeoXInferenceConfig
    _STATE_DICT_MODEL_PREFIX = "gpt_neox."

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        converted = {}
        for name, tensor in state_dict.items():
            if _MASK.search(name):
                continue
            for pattern, replacement in _NAMES:
                name = re.sub(pattern, replacement, name)
            if ".query_key_value." in name:
                heads = tensor.unflatten(0, (config.num_attention_heads, 3, -1))
                for kind, part in zip("qkv", heads.unbind(1), strict=True):
                    converted[name.replace("query_key_value", f"{kind}_proj")] = part.flatten(0, 1)
            else:
                converted[name] = tensor
        return converted


def _layer_norm(config: InferenceConfig) -> LayerNorm:
    return LayerNorm(config.hidden_size, config.layer_norm_eps, config.neuron_config.torch_dtype)


# The causal mask, which older checkpoints have as a tensor.
_MASK = re.compile(r"\.attention\.(masked_)?bias$")
_NAMES = (
    (r"^embed_in\.", "embed_tokens."),
    (r"^embed_out\.", "lm_head."),
    (r"^final_layer_norm\.", "norm."),
    (r"\.attention\.dense\.", ".self_attn.o_proj."),
    (r"\.attention\.", ".self_attn."),
    (r"\.dense_h_to_4h\.", ".up_proj."),
    (r"\.dense_4h_to_h\.", ".down_proj."),
)

"""The generic decoder: a model with Llama's layout under any name, without code of its own.

It runs only when asked for (`architecture="generic"`), never because a folder happens to fit. A
config and a checkpoint cannot prove how a model computes: Gemma's norms that add one to their
weights, or Ernie's rotation of neighbours, leave no trace in either. So the user says "this is
Llama's layout", and `understood` refuses everything in the folder that contradicts it. Comparing
with the original implementation once (`nxdi check`) settles the rest.

Optional parts are found in the checkpoint: biases, and norms of each query and key head. Windows
come from `layer_types`, the rest from Llama's attributes.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from nxdi.config import InferenceConfig, NeuronConfig
from nxdi.models.generic.understood import load_generic_config
from nxdi.models.llama.modeling_llama import LlamaInferenceConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.models.qwen3.modeling_qwen3 import rename_head_norms
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.norm import RMSNorm
from nxdi.modules.rope import rope_from_config

ConfigT = TypeVar("ConfigT", bound="GenericInferenceConfig")


class GenericInferenceConfig(LlamaInferenceConfig):
    """Llama's attributes, `layer_types`, and which optional parts the checkpoint has."""

    def get_required_attributes(self) -> list[str]:
        found = ["has_qkv_bias", "has_o_bias", "has_mlp_bias", "has_qk_norm"]
        return [*super().get_required_attributes(), "layer_types", *found]

    @classmethod
    def from_pretrained(
        cls: type[ConfigT],
        model_path: str | PathLike[str],
        neuron_config: NeuronConfig | None = None,
        **kwargs: Any,
    ) -> ConfigT:
        """The config of a local folder, whose checkpoint is read as well.

        Raises: UnsupportedError naming all that is not understood.
        """
        neuron_config = neuron_config or cls.get_neuron_config_cls()()
        return cls(neuron_config, load_config=load_generic_config(Path(model_path)), **kwargs)


class NeuronGenericAttention(NeuronAttentionBase):
    def __init__(self, config: InferenceConfig, layer_type: str) -> None:
        super().__init__(
            config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_emb=rope_from_config(config),
            qkv_bias=config.has_qkv_bias,
            o_bias=config.has_o_bias,
            q_layernorm=_head_norm(config),
            k_layernorm=_head_norm(config),
            sliding_window=config.sliding_window if layer_type == "sliding_attention" else None,
        )


def _head_norm(config: InferenceConfig) -> RMSNorm | None:
    if not config.has_qk_norm:
        return None
    return RMSNorm(config.head_dim, config.rms_norm_eps, config.neuron_config.torch_dtype)


class NeuronGenericDecoderLayer(PreNormDecoderLayer):
    def __init__(self, config: InferenceConfig, layer_type: str) -> None:
        mlp = GatedMLP(config, bias=config.has_mlp_bias)
        super().__init__(config, NeuronGenericAttention(config, layer_type), mlp)


class NeuronGenericModel(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            NeuronGenericDecoderLayer(config, layer_type) for layer_type in config.layer_types
        )
        self.norm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, config.neuron_config.torch_dtype
        )


class NeuronGenericForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronGenericModel
    _config_cls = GenericInferenceConfig

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        return rename_head_norms(state_dict)

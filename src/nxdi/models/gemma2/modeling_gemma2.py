"""Gemma 2: four norms per layer, scaled embeddings, tanh caps, windows on every other layer.

Source: arXiv:2408.00118; weights as in Hugging Face's Gemma2ForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.errors import UnsupportedError
from nxdi.models.llama.modeling_llama import LlamaInferenceConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.decoder_layer import SandwichNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.mlp import GatedMLP
from nxdi.modules.norm import UnitOffsetRMSNorm
from nxdi.modules.rope import rope_from_config


class Gemma2InferenceConfig(LlamaInferenceConfig):
    """What a Gemma 2 reads; the caps may be None, `layer_types` says which layers have a window."""

    def add_derived_config(self) -> None:
        # Older configs have a `hidden_act` as well, which does not count.
        if hasattr(self, "hidden_activation"):
            self.hidden_act = self.hidden_activation

    def get_required_attributes(self) -> list[str]:
        return [
            *super().get_required_attributes(),
            "hidden_activation",
            "query_pre_attn_scalar",
            "sliding_window",
            "layer_types",
            "attn_logit_softcapping",
            "final_logit_softcapping",
        ]

    def validate_config(self) -> None:
        super().validate_config()
        if getattr(self, "use_bidirectional_attention", None):
            raise UnsupportedError(
                "use_bidirectional_attention=True makes an encoder, which has nothing to decode; "
                "use a model with causal attention"
            )


class NeuronGemma2Attention(NeuronAttentionBase):
    def __init__(self, config: InferenceConfig, layer_type: str) -> None:
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
            scale=config.query_pre_attn_scalar**-0.5,
            softcap=config.attn_logit_softcapping,
            sliding_window=config.sliding_window if layer_type == "sliding_attention" else None,
        )


class NeuronGemma2Model(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        dtype = config.neuron_config.torch_dtype
        norm = partial(UnitOffsetRMSNorm, config.hidden_size, config.rms_norm_eps, dtype)
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        # The models were trained with the scale rounded to the dtype of their weights.
        self.embedding_scale = float(torch.tensor(config.hidden_size**0.5, dtype=dtype))
        self.layers = nn.ModuleList(
            SandwichNormDecoderLayer(self.make_attention(config, kind), GatedMLP(config), norm)
            for kind in config.layer_types
        )
        self.norm = norm()

    def make_attention(self, config: InferenceConfig, layer_type: str) -> NeuronAttentionBase:
        """The attention of one layer."""
        return NeuronGemma2Attention(config, layer_type)

    def embed(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return super().embed(inputs) * self.embedding_scale

    def logits(self, x: Tensor) -> Tensor:
        logits, cap = super().logits(x), self.config.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)


class NeuronGemma2ForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronGemma2Model
    _config_cls = Gemma2InferenceConfig

    @staticmethod
    def load_hf_model(model_path: str | PathLike[str], **kwargs: Any) -> nn.Module:
        """As the base does, with the only attention of transformers that applies the score cap."""
        kwargs.setdefault("attn_implementation", "eager")
        return NeuronBaseForCausalLM.load_hf_model(model_path, **kwargs)

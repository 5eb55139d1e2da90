"""GPT-OSS: attention sinks, windows on every other layer, biases, experts with a clamped SwiGLU.

Source: arXiv:2508.10925; weights as in Hugging Face's GptOssForCausalLM, those of experts in MXFP4
as published, or in 16 or 32 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nxdi.config import InferenceConfig, MoENeuronConfig, NeuronConfig
from nxdi.models.llama.modeling_llama import LlamaInferenceConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention import NeuronAttentionBase
from nxdi.modules.decoder_layer import PreNormDecoderLayer
from nxdi.modules.embeddings import causal_lm_ends
from nxdi.modules.moe import MoE, MoESpec, make_moe
from nxdi.modules.norm import RMSNorm
from nxdi.modules.rope import rope_from_config


class GptOssInferenceConfig(LlamaInferenceConfig):
    """Llama's attributes, the kind of each layer, and experts of `intermediate_size`."""

    def get_required_attributes(self) -> list[str]:
        own = ["sliding_window", "layer_types", "num_local_experts", "num_experts_per_tok"]
        return [*super().get_required_attributes(), *own]

    @classmethod
    def get_neuron_config_cls(cls) -> type[NeuronConfig]:
        return MoENeuronConfig


class NeuronGptOssAttention(NeuronAttentionBase):
    def __init__(self, config: InferenceConfig, layer_type: str) -> None:
        has_bias = getattr(config, "attention_bias", True)
        super().__init__(
            config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_emb=rope_from_config(config),
            qkv_bias=has_bias,
            o_bias=has_bias,
            sliding_window=config.sliding_window if layer_type == "sliding_attention" else None,
            has_sinks=True,
        )


class NeuronGptOssModel(NeuronBaseModel):
    def init_model(self, config: InferenceConfig) -> None:
        self.embed_tokens, self.lm_head = causal_lm_ends(config)
        self.layers = nn.ModuleList(
            PreNormDecoderLayer(config, NeuronGptOssAttention(config, kind), _mixture(config))
            for kind in config.layer_types
        )
        self.norm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, config.neuron_config.torch_dtype
        )


def _mixture(config: InferenceConfig) -> MoE:
    limit = getattr(config, "swiglu_limit", 7.0)  # transformers 4 has no names for these two
    spec = MoESpec(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_experts=config.num_local_experts,
        top_k=config.num_experts_per_tok,
        act_over_top_k=True,
        router_bias=True,
        normalize=False,
        experts_bias=True,
        glu_type="swiglu",
        hidden_act_scaling_factor=getattr(config, "swiglu_alpha", 1.702),
        hidden_act_bias=1.0,
        gate_clamp_upper_limit=limit,
        up_clamp_upper_limit=limit,
        up_clamp_lower_limit=-limit,
    )
    return make_moe(config, spec)


class NeuronGptOssForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronGptOssModel
    _config_cls = GptOssInferenceConfig

    @staticmethod
    def convert_hf_to_neuron_state_dict(
        state_dict: dict[str, Tensor], config: InferenceConfig
    ) -> dict[str, Tensor]:
        """Gates and values alternate in the checkpoint; `Experts` has one after the other."""
        return {
            name: torch.cat([tensor[..., ::2], tensor[..., 1::2]], dim=-1)
            if ".experts.gate_up_proj" in name and tensor.dim()
            else tensor
            for name, tensor in state_dict.items()
        }

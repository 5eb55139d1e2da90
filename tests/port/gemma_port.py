"""Gemma: norm weights stored minus one, scaled embeddings, a head size of its own."""

from typing import List, Optional, Tuple

import torch
from torch import nn

from nxdi.models.config import InferenceConfig, NeuronConfig
from nxdi.models.llama.modeling_llama import NeuronLlamaMLP
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention.attention_base import NeuronAttentionBase
from nxdi.modules.attention.utils import RotaryEmbedding
from nxdi.modules.custom_calls import CustomRMSNorm
from nxdi.parallel_layers.layers import ColumnParallelLinear, ParallelEmbedding
from nxdi.utils.hf_adapter import load_pretrained_config


class GemmaRMSNorm(CustomRMSNorm):
    """Adds the one to the weights when they are loaded."""

    def preshard_hook(self, model_state_dict, prefix):
        model_state_dict[prefix] = model_state_dict[prefix] + 1.0


class ScaledParallelEmbedding(ParallelEmbedding):
    def __init__(self, *args, embed_scale: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("embed_scale", torch.tensor(embed_scale), persistent=False)

    def forward(self, input_ids):
        return super().forward(input_ids) * self.embed_scale


class GemmaNeuronConfig(NeuronConfig):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attn_cls = NeuronGemmaAttention


class GemmaInferenceConfig(InferenceConfig):
    def add_derived_config(self):
        self.num_cores_per_group = 1

    def get_required_attributes(self) -> List[str]:
        return [
            "head_dim",
            "hidden_size",
            "hidden_act",
            "num_attention_heads",
            "num_key_value_heads",
            "num_hidden_layers",
            "vocab_size",
            "rms_norm_eps",
        ]

    @classmethod
    def get_neuron_config_cls(cls):
        return GemmaNeuronConfig


class NeuronGemmaAttention(NeuronAttentionBase):
    def __init__(self, config: GemmaInferenceConfig):
        super().__init__(
            config=config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_emb=RotaryEmbedding(
                config.head_dim,
                max_position_embeddings=config.max_position_embeddings,
                base=getattr(config, "rope_theta", 10000.0),
            ),
            softmax_scale=config.head_dim**0.5,
        )


class NeuronGemmaDecoderLayer(nn.Module):
    def __init__(self, config: GemmaInferenceConfig):
        super().__init__()
        self.self_attn = NeuronGemmaAttention(config)
        self.mlp = NeuronLlamaMLP(config)
        self.input_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.LongTensor] = None,
        past_key_value: Optional[Tuple[torch.Tensor]] = None,
        adapter_ids=None,
        rotary_position_ids: Optional[torch.LongTensor] = None,
        **kwargs,
    ):
        residual = hidden_states
        attn_output = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_value=past_key_value,
            adapter_ids=adapter_ids,
            rotary_position_ids=rotary_position_ids,
            **kwargs,
        )
        hidden_states = residual + attn_output.hidden_states
        residual = hidden_states
        hidden_states = self.mlp(
            self.post_attention_layernorm(hidden_states), adapter_ids=adapter_ids
        )[0]
        hidden_states = residual + hidden_states
        return (
            hidden_states,
            attn_output.present_key_value,
            attn_output.cos_cache,
            attn_output.sin_cache,
            None,
        )


class NeuronGemmaModel(NeuronBaseModel):
    def setup_attr_for_model(self, config: GemmaInferenceConfig):
        self.on_device_sampling = config.neuron_config.on_device_sampling_config is not None
        self.tp_degree = config.neuron_config.tp_degree
        self.hidden_size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.max_batch_size = config.neuron_config.max_batch_size
        self.buckets = config.neuron_config.buckets

    def init_model(self, config: GemmaInferenceConfig):
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = ScaledParallelEmbedding(
            config.vocab_size,
            config.hidden_size,
            self.padding_idx,
            embed_scale=config.hidden_size**0.5,
            dtype=config.neuron_config.torch_dtype,
            shard_across_embedding=not config.neuron_config.vocab_parallel,
            sequence_parallel_enabled=config.neuron_config.sequence_parallel_enabled,
            sequence_dimension=1,
            pad=True,
        )
        self.layers = nn.ModuleList(
            [NeuronGemmaDecoderLayer(config) for _ in range(config.num_hidden_layers)]
        )
        self.norm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = ColumnParallelLinear(
            config.hidden_size,
            config.vocab_size,
            bias=False,
            pad=True,
            dtype=config.neuron_config.torch_dtype,
            gather_output=not self.on_device_sampling,
        )


class NeuronGemmaForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronGemmaModel

    @classmethod
    def from_config(cls, config):
        return cls(config.model_dir, config)

    @classmethod
    def from_pretrained(cls, model_path, neuron_config):
        config = GemmaInferenceConfig(
            neuron_config=neuron_config,
            load_config=load_pretrained_config(model_path),
            model_dir=str(model_path),
        )
        return cls.from_config(config)

    @staticmethod
    def load_hf_model(model_path, **kwargs):
        from transformers import GemmaForCausalLM

        return GemmaForCausalLM.from_pretrained(model_path, **kwargs)

    @staticmethod
    def convert_hf_to_neuron_state_dict(state_dict, config):
        for i in range(config.num_hidden_layers):
            state_dict[f"layers.{i}.self_attn.rank_util.rank"] = torch.arange(
                0, config.neuron_config.tp_degree, dtype=torch.int32
            )
        if config.neuron_config.vocab_parallel:
            state_dict["embed_tokens.rank_util.rank"] = torch.arange(
                0, config.neuron_config.local_ranks_size
            )
        return state_dict

    @staticmethod
    def update_state_dict_for_tied_weights(state_dict):
        state_dict["lm_head.weight"] = state_dict["embed_tokens.weight"].clone()

    @classmethod
    def get_config_cls(cls):
        return GemmaInferenceConfig

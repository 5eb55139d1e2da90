"""Granite: Llama with four multipliers (embeddings, attention, residuals, logits)."""

from typing import List, Optional, Tuple, Type

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from nxdi.models.config import InferenceConfig, NeuronConfig
from nxdi.models.llama.modeling_llama import NeuronLlamaMLP
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention.attention_base import NeuronAttentionBase
from nxdi.modules.attention.utils import RotaryEmbedding
from nxdi.modules.custom_calls import CustomRMSNorm
from nxdi.parallel_layers import parallel_state
from nxdi.parallel_layers.layers import ColumnParallelLinear, ParallelEmbedding
from nxdi.utils import cpu_mode


def get_rmsnorm_cls():
    return LlamaRMSNorm if cpu_mode() else CustomRMSNorm


class GraniteNeuronConfig(NeuronConfig):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attn_cls = NeuronGraniteAttention


class GraniteInferenceConfig(InferenceConfig):
    def add_derived_config(self):
        self.num_cores_per_group = 1

    def get_required_attributes(self) -> List[str]:
        return [
            "hidden_size",
            "num_attention_heads",
            "num_hidden_layers",
            "num_key_value_heads",
            "vocab_size",
            "rope_theta",
            "rms_norm_eps",
            "hidden_act",
            "embedding_multiplier",
            "attention_multiplier",
            "residual_multiplier",
            "logits_scaling",
        ]

    @classmethod
    def get_neuron_config_cls(cls) -> Type[GraniteNeuronConfig]:
        return GraniteNeuronConfig


class NeuronGraniteAttention(NeuronAttentionBase):
    def __init__(self, config: GraniteInferenceConfig):
        head_dim = config.hidden_size // config.num_attention_heads
        super().__init__(
            config=config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=head_dim,
            rotary_emb=RotaryEmbedding(
                head_dim,
                max_position_embeddings=config.max_position_embeddings,
                base=config.rope_theta,
            ),
            # the base class divides by it
            softmax_scale=1.0 / config.attention_multiplier,
        )


class ScaledLMHead(nn.Module):
    def __init__(self, config, gather_output):
        super().__init__()
        self.logits_scaling = config.logits_scaling
        self.proj = ColumnParallelLinear(
            config.hidden_size,
            config.vocab_size,
            gather_output=gather_output,
            bias=False,
            pad=True,
            dtype=config.neuron_config.torch_dtype,
        )

    def forward(self, hidden_states):
        return self.proj(hidden_states) / self.logits_scaling


class NeuronGraniteDecoderLayer(nn.Module):
    def __init__(self, config: GraniteInferenceConfig):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.residual_multiplier = config.residual_multiplier
        self.self_attn = NeuronGraniteAttention(config)
        self.mlp = NeuronLlamaMLP(config)
        self.input_layernorm = get_rmsnorm_cls()(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = get_rmsnorm_cls()(
            config.hidden_size, eps=config.rms_norm_eps
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.LongTensor] = None,
        past_key_value: Optional[Tuple[torch.Tensor]] = None,
        **kwargs,
    ):
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, present_key_value, cos_cache, sin_cache = self.self_attn(
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_value=past_key_value,
            **kwargs,
        )
        hidden_states = residual + hidden_states * self.residual_multiplier

        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states, _ = self.mlp(hidden_states)
        hidden_states = residual + hidden_states * self.residual_multiplier

        return (hidden_states, present_key_value, cos_cache, sin_cache, None)


class NeuronGraniteModel(NeuronBaseModel):
    def setup_attr_for_model(self, config: GraniteInferenceConfig):
        self.on_device_sampling = config.neuron_config.on_device_sampling_config is not None
        self.tp_degree = config.neuron_config.tp_degree
        self.hidden_size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.max_batch_size = config.neuron_config.max_batch_size
        self.buckets = config.neuron_config.buckets

    def init_model(self, config: GraniteInferenceConfig):
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embedding_multiplier = config.embedding_multiplier
        if parallel_state.model_parallel_is_initialized():
            self.embed_tokens = ParallelEmbedding(
                config.vocab_size,
                config.hidden_size,
                self.padding_idx,
                dtype=config.neuron_config.torch_dtype,
                shard_across_embedding=not config.neuron_config.vocab_parallel,
                sequence_parallel_enabled=config.neuron_config.sequence_parallel_enabled,
                sequence_dimension=self.sequence_dimension,
                pad=True,
                use_spmd_rank=config.neuron_config.vocab_parallel,
            )
        else:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            [NeuronGraniteDecoderLayer(config) for _ in range(config.num_hidden_layers)]
        )
        self.norm = get_rmsnorm_cls()(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = ScaledLMHead(config, gather_output=not self.on_device_sampling)

    def get_model_output(self, input_ids=None, inputs_embeds=None, **kwargs):
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        return super().get_model_output(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds * self.embedding_multiplier,
            **kwargs,
        )


class NeuronGraniteForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronGraniteModel

    @staticmethod
    def load_hf_model(model_path, **kwargs):
        from transformers import GraniteForCausalLM

        return GraniteForCausalLM.from_pretrained(model_path, **kwargs)

    @staticmethod
    def convert_hf_to_neuron_state_dict(state_dict: dict, config: InferenceConfig) -> dict:
        neuron_config = config.neuron_config
        if "lm_head.weight" in state_dict:
            state_dict["lm_head.proj.weight"] = state_dict.pop("lm_head.weight")
        for i in range(config.num_hidden_layers):
            state_dict[f"layers.{i}.self_attn.rank_util.rank"] = torch.arange(
                0, neuron_config.tp_degree, dtype=torch.int32
            )
        if neuron_config.vocab_parallel:
            state_dict["embed_tokens.rank_util.rank"] = torch.arange(
                0, neuron_config.local_ranks_size
            )
        state_dict["rank_util.rank"] = torch.arange(0, neuron_config.tp_degree, dtype=torch.int32)
        return state_dict

    @staticmethod
    def update_state_dict_for_tied_weights(state_dict):
        state_dict["lm_head.proj.weight"] = state_dict["embed_tokens.weight"].clone()

    @classmethod
    def get_config_cls(cls) -> Type[GraniteInferenceConfig]:
        return GraniteInferenceConfig

"""Phi-1.5 and Phi-2: one LayerNorm for attention and MLP, partial rotary, lm_head with a bias."""

from typing import List, Optional, Tuple

import torch
from torch import nn
from transformers.activations import ACT2FN

from nxdi.models.config import InferenceConfig, NeuronConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention.attention_base import NeuronAttentionBase
from nxdi.modules.attention.utils import RotaryEmbedding, apply_rotary_pos_emb
from nxdi.parallel_layers import ColumnParallelLinear, ParallelEmbedding, RowParallelLinear
from nxdi.utils.distributed import get_tp_group
from nxdi.utils.hf_adapter import load_pretrained_config


class PhiNeuronConfig(NeuronConfig):
    def __init__(self, **kwargs):
        kwargs.setdefault("fused_qkv", True)
        super().__init__(**kwargs)
        self.attn_cls = NeuronPhiAttention


class PhiInferenceConfig(InferenceConfig):
    def add_derived_config(self):
        self.num_cores_per_group = 1
        if getattr(self, "num_key_value_heads", None) is None:
            self.num_key_value_heads = self.num_attention_heads

    def get_required_attributes(self) -> List[str]:
        return [
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_hidden_layers",
            "vocab_size",
            "partial_rotary_factor",
            "rope_theta",
            "layer_norm_eps",
        ]

    def validate_config(self):
        super().validate_config()
        assert self.hidden_size % self.num_attention_heads == 0

    @classmethod
    def get_neuron_config_cls(cls):
        return PhiNeuronConfig

    @classmethod
    def from_pretrained(cls, model_path, neuron_config=None, **kwargs):
        return cls(
            neuron_config=neuron_config, load_config=load_pretrained_config(model_path), **kwargs
        )


class NeuronPhiAttention(NeuronAttentionBase):
    def __init__(self, config: PhiInferenceConfig):
        head_dim = config.hidden_size // config.num_attention_heads
        self.rotary_dim = int(config.partial_rotary_factor * head_dim)
        super().__init__(
            config=config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=head_dim,
            rotary_emb=RotaryEmbedding(
                self.rotary_dim,
                max_position_embeddings=config.max_position_embeddings,
                base=config.rope_theta,
            ),
            rope_theta=config.rope_theta,
            qkv_bias=True,
            o_bias=True,
            tensor_model_parallel_group=get_tp_group(config),
        )

    def apply_rotary_embedding(
        self, Q, K, V, position_ids, cos_cache, sin_cache, use_polar_compatible_rope=False
    ):
        if cos_cache is None or sin_cache is None:
            cos_cache, sin_cache = self.rotary_emb(V, position_ids)
        q_rot, k_rot = apply_rotary_pos_emb(
            Q[..., : self.rotary_dim], K[..., : self.rotary_dim], cos_cache, sin_cache
        )
        Q = torch.cat([q_rot, Q[..., self.rotary_dim :]], dim=-1)
        K = torch.cat([k_rot, K[..., self.rotary_dim :]], dim=-1)
        return Q, K, cos_cache, sin_cache


class NeuronPhiMLP(nn.Module):
    def __init__(self, config: PhiInferenceConfig):
        super().__init__()
        self.fc1 = ColumnParallelLinear(
            config.hidden_size,
            config.intermediate_size,
            bias=True,
            gather_output=False,
            dtype=config.neuron_config.torch_dtype,
            pad=True,
            tensor_model_parallel_group=get_tp_group(config),
        )
        self.fc2 = RowParallelLinear(
            config.intermediate_size,
            config.hidden_size,
            bias=True,
            input_is_parallel=True,
            dtype=config.neuron_config.torch_dtype,
            pad=True,
            reduce_dtype=torch.float32,
            tensor_model_parallel_group=get_tp_group(config),
        )
        self.activation_fn = ACT2FN[config.hidden_act]

    def forward(self, x):
        return self.fc2(self.activation_fn(self.fc1(x)))


class NeuronPhiDecoderLayer(nn.Module):
    def __init__(self, config: PhiInferenceConfig):
        super().__init__()
        self.self_attn = NeuronPhiAttention(config)
        self.mlp = NeuronPhiMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

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
        attn_outputs = self.self_attn(
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_value=past_key_value,
            **kwargs,
        )
        hidden_states = attn_outputs.hidden_states + self.mlp(hidden_states) + residual
        return (
            hidden_states,
            attn_outputs.present_key_value,
            attn_outputs.cos_cache,
            attn_outputs.sin_cache,
            None,
        )


class NeuronPhiModel(NeuronBaseModel):
    def setup_attr_for_model(self, config: PhiInferenceConfig):
        self.on_device_sampling = config.neuron_config.on_device_sampling_config is not None
        self.tp_degree = config.neuron_config.tp_degree
        self.hidden_size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.max_batch_size = config.neuron_config.max_batch_size
        self.buckets = config.neuron_config.buckets

    def init_model(self, config: PhiInferenceConfig):
        self.padding_idx = getattr(config, "pad_token_id", None)
        self.vocab_size = config.vocab_size
        self.embed_tokens = ParallelEmbedding(
            config.vocab_size,
            config.hidden_size,
            self.padding_idx,
            dtype=config.neuron_config.torch_dtype,
            shard_across_embedding=not config.neuron_config.vocab_parallel,
            pad=True,
            tensor_model_parallel_group=get_tp_group(config),
        )
        self.layers = nn.ModuleList(
            [NeuronPhiDecoderLayer(config) for _ in range(config.num_hidden_layers)]
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.lm_head = ColumnParallelLinear(
            config.hidden_size,
            config.vocab_size,
            bias=True,
            pad=True,
            gather_output=not self.on_device_sampling,
            dtype=config.neuron_config.torch_dtype,
            tensor_model_parallel_group=get_tp_group(config),
        )


class NeuronPhiForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronPhiModel

    @staticmethod
    def load_hf_model(model_path, **kwargs):
        from transformers import PhiForCausalLM

        return PhiForCausalLM.from_pretrained(model_path, **kwargs)

    @staticmethod
    def convert_hf_to_neuron_state_dict(state_dict, config):
        neuron_config = config.neuron_config
        for key in list(state_dict.keys()):
            new_key = key.replace("self_attn.dense.", "self_attn.o_proj.o_proj.")
            new_key = new_key.replace("final_layernorm.", "norm.")
            if new_key != key:
                state_dict[new_key] = state_dict.pop(key)
        for i in range(config.num_hidden_layers):
            attn = f"layers.{i}.self_attn"
            state_dict[f"{attn}.rank_util.rank"] = torch.arange(
                0, neuron_config.tp_degree, dtype=torch.int32
            )
            if neuron_config.fused_qkv:
                for kind in ("weight", "bias"):
                    parts = [state_dict.pop(f"{attn}.{p}_proj.{kind}") for p in ("q", "k", "v")]
                    state_dict[f"{attn}.Wqkv.{kind}"] = torch.cat(parts)
        state_dict["rank_util.rank"] = torch.arange(0, neuron_config.tp_degree, dtype=torch.int32)
        return state_dict

    @classmethod
    def get_config_cls(cls):
        return PhiInferenceConfig

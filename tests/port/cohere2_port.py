"""Cohere Command R7B: parallel block, interleaved rotary in the layers that have a window."""

from typing import List, Optional, Tuple, Type

import torch
from torch import nn

from nxdi.models.config import InferenceConfig, NeuronConfig
from nxdi.models.llama.modeling_llama import NeuronLlamaMLP
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention.attention_base import NeuronAttentionBase
from nxdi.parallel_layers import parallel_state
from nxdi.parallel_layers.layers import ColumnParallelLinear, ParallelEmbedding


class Cohere2LayerNorm(nn.Module):
    """LayerNorm without a bias, in float32."""

    def __init__(self, hidden_size, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        mean = hidden_states.mean(-1, keepdim=True)
        variance = (hidden_states - mean).pow(2).mean(-1, keepdim=True)
        hidden_states = (hidden_states - mean) * torch.rsqrt(variance + self.variance_epsilon)
        return (self.weight.to(torch.float32) * hidden_states).to(input_dtype)


class Cohere2RotaryEmbedding(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    @torch.no_grad()
    def forward(self, x, position_ids):
        freqs = position_ids[:, :, None].float() * self.inv_freq[None, None, :]
        emb = torch.repeat_interleave(freqs, 2, dim=-1)
        return emb.cos().to(x.dtype), emb.sin().to(x.dtype)


def rotate_half_interleaved(x):
    x1 = x[..., ::2]
    x2 = x[..., 1::2]
    return torch.stack([-x2, x1], dim=-1).flatten(-2)


class Cohere2NeuronConfig(NeuronConfig):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attn_cls = NeuronCohere2Attention


class Cohere2InferenceConfig(InferenceConfig):
    def add_derived_config(self):
        self.num_cores_per_group = 1

    def get_required_attributes(self) -> List[str]:
        return [
            "hidden_size",
            "num_attention_heads",
            "num_key_value_heads",
            "num_hidden_layers",
            "layer_norm_eps",
            "layer_types",
            "logit_scale",
            "rope_theta",
            "sliding_window",
        ]

    @classmethod
    def get_neuron_config_cls(cls) -> Type[Cohere2NeuronConfig]:
        return Cohere2NeuronConfig


class NeuronCohere2Attention(NeuronAttentionBase):
    def __init__(self, config: Cohere2InferenceConfig, layer_idx: int):
        is_sliding = config.layer_types[layer_idx] == "sliding_attention"
        head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
        super().__init__(
            config=config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=head_dim,
            rotary_emb=Cohere2RotaryEmbedding(head_dim, config.rope_theta) if is_sliding else None,
            sliding_window=config.sliding_window if is_sliding else None,
        )

    def apply_rotary_embedding(
        self, Q, K, V, position_ids, cos_cache, sin_cache, use_polar_compatible_rope
    ):
        if self.rotary_emb is None:
            return Q, K, cos_cache, sin_cache
        if cos_cache is None or sin_cache is None:
            cos_cache, sin_cache = self.rotary_emb(V, position_ids)
        cos, sin = cos_cache.unsqueeze(1), sin_cache.unsqueeze(1)
        Q = (Q * cos) + (rotate_half_interleaved(Q) * sin)
        K = (K * cos) + (rotate_half_interleaved(K) * sin)
        return Q, K, cos_cache, sin_cache


class NeuronCohere2DecoderLayer(nn.Module):
    def __init__(self, config: Cohere2InferenceConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.self_attn = NeuronCohere2Attention(config, layer_idx)
        self.mlp = NeuronLlamaMLP(config)
        self.input_layernorm = Cohere2LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.LongTensor] = None,
        past_key_value: Optional[Tuple[torch.Tensor]] = None,
        local_mask: Optional[torch.Tensor] = None,
        **kwargs,
    ):
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states_attention, present_key_value, cos_cache, sin_cache = self.self_attn(
            hidden_states=hidden_states,
            attention_mask=attention_mask if local_mask is None else local_mask,
            position_ids=position_ids,
            past_key_value=past_key_value,
            **kwargs,
        )
        hidden_states_mlp, _ = self.mlp(hidden_states)
        hidden_states = residual + hidden_states_attention + hidden_states_mlp
        return (hidden_states, present_key_value, cos_cache, sin_cache, None)


class Cohere2LMHead(ColumnParallelLinear):
    def __init__(self, *args, logit_scale=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.logit_scale = logit_scale

    def forward(self, x):
        return super().forward(x) * self.logit_scale


class NeuronCohere2Model(NeuronBaseModel):
    def setup_attr_for_model(self, config: Cohere2InferenceConfig):
        self.on_device_sampling = config.neuron_config.on_device_sampling_config is not None
        self.tp_degree = config.neuron_config.tp_degree
        self.hidden_size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.max_batch_size = config.neuron_config.max_batch_size
        self.buckets = config.neuron_config.buckets
        self.sliding_window = config.sliding_window

    def init_model(self, config: Cohere2InferenceConfig):
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        if parallel_state.model_parallel_is_initialized():
            self.embed_tokens = ParallelEmbedding(
                config.vocab_size,
                config.hidden_size,
                self.padding_idx,
                dtype=config.neuron_config.torch_dtype,
                shard_across_embedding=not config.neuron_config.vocab_parallel,
                sequence_parallel_enabled=config.neuron_config.sequence_parallel_enabled,
                sequence_dimension=1,
                pad=True,
            )
            self.lm_head = Cohere2LMHead(
                config.hidden_size,
                config.vocab_size,
                bias=False,
                pad=True,
                gather_output=not self.on_device_sampling,
                dtype=config.neuron_config.torch_dtype,
                logit_scale=config.logit_scale,
            )
        self.layers = nn.ModuleList(
            [NeuronCohere2DecoderLayer(config, i) for i in range(config.num_hidden_layers)]
        )
        self.norm = Cohere2LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class NeuronCohere2ForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronCohere2Model

    @staticmethod
    def load_hf_model(model_path, **kwargs):
        from transformers import Cohere2ForCausalLM

        return Cohere2ForCausalLM.from_pretrained(model_path, **kwargs)

    @staticmethod
    def convert_hf_to_neuron_state_dict(state_dict, config):
        tp_degree = config.neuron_config.tp_degree
        for i in range(config.num_hidden_layers):
            attn = f"layers.{i}.self_attn"
            state_dict[f"{attn}.rank_util.rank"] = torch.arange(0, tp_degree, dtype=torch.int32)
            state_dict[f"{attn}.o_proj.o_proj.weight"] = state_dict.pop(f"{attn}.o_proj.weight")
        state_dict["rank_util.rank"] = torch.arange(0, tp_degree, dtype=torch.int32)
        return state_dict

    @staticmethod
    def update_state_dict_for_tied_weights(state_dict):
        state_dict["lm_head.weight"] = state_dict["embed_tokens.weight"].clone()

    @classmethod
    def get_config_cls(cls) -> Type[Cohere2InferenceConfig]:
        return Cohere2InferenceConfig

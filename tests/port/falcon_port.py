"""Falcon 7B: multi-query attention, attention and MLP in parallel, fused QKV weights."""

import json
import os
from typing import List, Optional, Tuple

import torch
from torch import nn

from nxdi.models.config import InferenceConfig, NeuronConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention.attention_base import NeuronAttentionBase
from nxdi.modules.attention.utils import RotaryEmbedding
from nxdi.parallel_layers.layers import ColumnParallelLinear, ParallelEmbedding, RowParallelLinear


class FalconNeuronConfig(NeuronConfig):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attn_cls = NeuronFalconAttention


class FalconInferenceConfig(InferenceConfig):
    def add_derived_config(self):
        self.num_cores_per_group = 1
        self.head_dim = self.hidden_size // self.num_attention_heads
        self.num_key_value_heads = 1 if self.multi_query else self.num_attention_heads

    def get_required_attributes(self) -> List[str]:
        return ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"]

    @classmethod
    def get_neuron_config_cls(cls):
        return FalconNeuronConfig

    @classmethod
    def from_pretrained(cls, model_path, neuron_config=None, **kwargs):
        with open(os.path.join(model_path, "config.json")) as f:
            params = json.load(f)
        keep = {
            "hidden_size": params["hidden_size"],
            "num_attention_heads": params["num_attention_heads"],
            "num_hidden_layers": params["num_hidden_layers"],
            "vocab_size": params["vocab_size"],
            "layer_norm_epsilon": params.get("layer_norm_epsilon", 1e-5),
            "multi_query": params.get("multi_query", True),
            "parallel_attn": params.get("parallel_attn", True),
            "bias": params.get("bias", False),
            "rope_theta": params.get("rope_theta", 10000.0),
            "max_position_embeddings": params.get("max_position_embeddings", 2048),
            "tie_word_embeddings": params.get("tie_word_embeddings", True),
            "pad_token_id": params.get("pad_token_id"),
            "bos_token_id": params.get("bos_token_id"),
            "eos_token_id": params.get("eos_token_id"),
        }
        keep.update(kwargs)
        return cls(neuron_config=neuron_config, **keep)


class NeuronFalconAttention(NeuronAttentionBase):
    def __init__(self, config: FalconInferenceConfig):
        super().__init__(
            config=config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_emb=RotaryEmbedding(
                config.head_dim, config.max_position_embeddings, config.rope_theta
            ),
            qkv_bias=config.bias,
            o_bias=config.bias,
        )


class NeuronFalconMLP(nn.Module):
    def __init__(self, config: FalconInferenceConfig):
        super().__init__()
        dtype = config.neuron_config.torch_dtype
        self.dense_h_to_4h = ColumnParallelLinear(
            config.hidden_size,
            4 * config.hidden_size,
            bias=config.bias,
            gather_output=False,
            dtype=dtype,
        )
        self.dense_4h_to_h = RowParallelLinear(
            4 * config.hidden_size,
            config.hidden_size,
            bias=config.bias,
            input_is_parallel=True,
            dtype=dtype,
        )
        self.act = nn.GELU()

    def forward(self, x):
        return self.dense_4h_to_h(self.act(self.dense_h_to_4h(x)))


class NeuronFalconDecoderLayer(nn.Module):
    def __init__(self, config: FalconInferenceConfig):
        super().__init__()
        assert config.parallel_attn
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.self_attn = NeuronFalconAttention(config)
        self.mlp = NeuronFalconMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.LongTensor] = None,
        past_key_value: Optional[Tuple[torch.Tensor]] = None,
        **kwargs,
    ):
        residual = hidden_states
        layernorm_output = self.input_layernorm(hidden_states)
        attn_output, present_key_value, cos_cache, sin_cache = self.self_attn(
            hidden_states=layernorm_output,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_value=past_key_value,
            **kwargs,
        )
        hidden_states = residual + attn_output + self.mlp(layernorm_output)
        return hidden_states, present_key_value, cos_cache, sin_cache, None


class NeuronFalconModel(NeuronBaseModel):
    def setup_attr_for_model(self, config: FalconInferenceConfig):
        self.on_device_sampling = config.neuron_config.on_device_sampling_config is not None
        self.tp_degree = config.neuron_config.tp_degree
        self.hidden_size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.max_batch_size = config.neuron_config.max_batch_size
        self.buckets = config.neuron_config.buckets

    def init_model(self, config: FalconInferenceConfig):
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        dtype = config.neuron_config.torch_dtype
        self.embed_tokens = ParallelEmbedding(
            config.vocab_size,
            config.hidden_size,
            self.padding_idx,
            dtype=dtype,
            shard_across_embedding=not config.neuron_config.vocab_parallel,
            pad=True,
        )
        self.layers = nn.ModuleList(
            [NeuronFalconDecoderLayer(config) for _ in range(config.num_hidden_layers)]
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.lm_head = ColumnParallelLinear(
            config.hidden_size,
            config.vocab_size,
            bias=False,
            pad=True,
            dtype=dtype,
            gather_output=not self.on_device_sampling,
        )


class NeuronFalconForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronFalconModel
    _STATE_DICT_MODEL_PREFIX = "transformer."

    @staticmethod
    def load_hf_model(model_path, **kwargs):
        from transformers import FalconForCausalLM

        return FalconForCausalLM.from_pretrained(model_path, **kwargs)

    @staticmethod
    def convert_hf_to_neuron_state_dict(state_dict, config):
        converted = {}
        for name, tensor in state_dict.items():
            name = name.replace("h.", "layers.", 1) if name.startswith("h.") else name
            name = name.replace("word_embeddings.", "embed_tokens.").replace("ln_f.", "norm.")
            # rows of all query heads, then of the one key and the one value head
            name = name.replace(".self_attention.query_key_value.", ".self_attn.qkv_proj.Wqkv.")
            name = name.replace(".self_attention.dense.", ".self_attn.o_proj.")
            converted[name] = tensor
        for i in range(config.num_hidden_layers):
            converted[f"layers.{i}.self_attn.rank_util.rank"] = torch.arange(
                0, config.neuron_config.tp_degree, dtype=torch.int32
            )
        return converted

    @staticmethod
    def update_state_dict_for_tied_weights(state_dict):
        state_dict["lm_head.weight"] = state_dict["embed_tokens.weight"].clone()

    @staticmethod
    def get_config_cls():
        return FalconInferenceConfig

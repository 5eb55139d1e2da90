"""StarCoder2: LayerNorm, biases everywhere, a sliding window in every layer."""

import json
import os
from typing import List, Optional, Tuple, Type

import torch
from torch import nn
from transformers.activations import ACT2FN

from nxdi.models.config import InferenceConfig, NeuronConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention.attention_base import NeuronAttentionBase
from nxdi.modules.attention.utils import RotaryEmbedding
from nxdi.parallel_layers.layers import ColumnParallelLinear, ParallelEmbedding, RowParallelLinear
from nxdi.parallel_layers.mappings import scatter_to_sequence_parallel_region
from nxdi.utils.distributed import get_tp_group


class Starcoder2NeuronConfig(NeuronConfig):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attn_cls = NeuronStarcoder2Attention


class Starcoder2InferenceConfig(InferenceConfig):
    def add_derived_config(self):
        self.num_cores_per_group = 1
        if not hasattr(self, "head_dim"):
            self.head_dim = self.hidden_size // self.num_attention_heads

    def get_required_attributes(self) -> List[str]:
        return [
            "hidden_size",
            "num_attention_heads",
            "num_hidden_layers",
            "num_key_value_heads",
            "vocab_size",
            "norm_epsilon",
            "use_bias",
            "sliding_window",
        ]

    @classmethod
    def get_neuron_config_cls(cls) -> Type[Starcoder2NeuronConfig]:
        return Starcoder2NeuronConfig

    @classmethod
    def from_pretrained(cls, model_path: str, **kwargs) -> "Starcoder2InferenceConfig":
        neuron_config = kwargs.pop("neuron_config", None)
        with open(os.path.join(model_path, "config.json"), "r") as f:
            config_dict = json.load(f)
        inference_config = {
            "hidden_size": config_dict["hidden_size"],
            "intermediate_size": config_dict["intermediate_size"],
            "num_attention_heads": config_dict["num_attention_heads"],
            "num_key_value_heads": config_dict["num_key_value_heads"],
            "num_hidden_layers": config_dict["num_hidden_layers"],
            "vocab_size": config_dict["vocab_size"],
            "max_position_embeddings": config_dict["max_position_embeddings"],
            "hidden_act": config_dict["hidden_act"],
            "norm_epsilon": config_dict["norm_epsilon"],
            "rope_theta": config_dict.get("rope_theta", 10000.0),
            "use_bias": config_dict.get("use_bias", True),
            "sliding_window": config_dict.get("sliding_window"),
            "tie_word_embeddings": config_dict.get("tie_word_embeddings", True),
            "pad_token_id": config_dict.get("pad_token_id"),
            "bos_token_id": config_dict.get("bos_token_id"),
            "eos_token_id": config_dict.get("eos_token_id"),
        }
        inference_config.update(kwargs)
        return cls(neuron_config=neuron_config, **inference_config)


class NeuronStarcoder2Attention(NeuronAttentionBase):
    def __init__(self, config: Starcoder2InferenceConfig):
        super().__init__(
            config=config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_emb=RotaryEmbedding(
                config.head_dim,
                max_position_embeddings=config.max_position_embeddings,
                base=config.rope_theta,
            ),
            qkv_bias=config.use_bias,
            o_bias=config.use_bias,
            sliding_window=config.sliding_window,
        )


class NeuronStarcoder2MLP(nn.Module):
    def __init__(self, config: Starcoder2InferenceConfig):
        super().__init__()
        common = {
            "bias": config.use_bias,
            "dtype": config.neuron_config.torch_dtype,
            "pad": True,
            "sequence_parallel_enabled": config.neuron_config.sequence_parallel_enabled,
            "sequence_dimension": 1,
            "tensor_model_parallel_group": get_tp_group(config),
        }
        self.c_fc = ColumnParallelLinear(
            config.hidden_size, config.intermediate_size, gather_output=False, **common
        )
        self.c_proj = RowParallelLinear(
            config.intermediate_size, config.hidden_size, input_is_parallel=True, **common
        )
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden_states, adapter_ids=None):
        return self.c_proj(self.act(self.c_fc(hidden_states))), None


class NeuronStarcoder2DecoderLayer(nn.Module):
    def __init__(self, config: Starcoder2InferenceConfig):
        super().__init__()
        self.self_attn = NeuronStarcoder2Attention(config)
        self.mlp = NeuronStarcoder2MLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.LongTensor] = None,
        past_key_value: Optional[Tuple[torch.Tensor]] = None,
        adapter_ids=None,
        **kwargs,
    ):
        residual = hidden_states
        hidden_states, present_key_value, cos_cache, sin_cache = self.self_attn(
            self.input_layernorm(hidden_states),
            attention_mask,
            position_ids,
            past_key_value,
            adapter_ids=adapter_ids,
            **kwargs,
        )
        hidden_states = residual + hidden_states
        residual = hidden_states
        mlp_output, _ = self.mlp(self.post_attention_layernorm(hidden_states), adapter_ids)
        hidden_states = residual + mlp_output
        return (hidden_states, present_key_value, cos_cache, sin_cache, None)


class NeuronStarcoder2Model(NeuronBaseModel):
    def setup_attr_for_model(self, config: Starcoder2InferenceConfig):
        self.on_device_sampling = config.neuron_config.on_device_sampling_config is not None
        self.tp_degree = config.neuron_config.tp_degree
        self.hidden_size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.max_batch_size = config.neuron_config.max_batch_size
        self.buckets = config.neuron_config.buckets
        self.sliding_window = config.sliding_window

    def init_model(self, config: Starcoder2InferenceConfig):
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        # whole sequences: they are scattered below
        self.embed_tokens = ParallelEmbedding(
            config.vocab_size,
            config.hidden_size,
            self.padding_idx,
            dtype=config.neuron_config.torch_dtype,
            shard_across_embedding=not config.neuron_config.vocab_parallel,
            pad=True,
        )
        self.layers = nn.ModuleList(
            [NeuronStarcoder2DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)
        self.lm_head = ColumnParallelLinear(
            config.hidden_size,
            config.vocab_size,
            bias=False,
            pad=True,
            gather_output=not self.on_device_sampling,
            dtype=config.neuron_config.torch_dtype,
        )

    def process_sequence_parallel_hidden_states(
        self, inputs_embeds, seq_length, active_block_table=None
    ):
        if self.sequence_parallel_enabled:
            return scatter_to_sequence_parallel_region(inputs_embeds, self.sequence_dimension)
        return inputs_embeds


class NeuronStarcoder2ForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronStarcoder2Model

    @staticmethod
    def load_hf_model(model_path, **kwargs):
        from transformers import Starcoder2ForCausalLM

        return Starcoder2ForCausalLM.from_pretrained(model_path, **kwargs)

    @staticmethod
    def convert_hf_to_neuron_state_dict(state_dict, config):
        neuron_config = config.neuron_config
        new = {}
        for name, tensor in state_dict.items():
            for proj in ("q_proj", "k_proj", "v_proj"):
                name = name.replace(f"self_attn.{proj}.", f"self_attn.qkv_proj.{proj}.")
            new[name.replace("self_attn.o_proj.", "self_attn.o_proj.o_proj.")] = tensor
        for i in range(config.num_hidden_layers):
            new[f"layers.{i}.self_attn.rank_util.rank"] = torch.arange(
                0, neuron_config.tp_degree, dtype=torch.int32
            )
        new["rank_util.rank"] = torch.arange(0, neuron_config.tp_degree, dtype=torch.int32)
        return new

    @staticmethod
    def update_state_dict_for_tied_weights(state_dict):
        state_dict["lm_head.weight"] = state_dict["embed_tokens.weight"].clone()

    @classmethod
    def get_config_cls(cls) -> Type[Starcoder2InferenceConfig]:
        return Starcoder2InferenceConfig

    def get_compiler_args(self):
        compiler_args = "--enable-saturate-infinity --auto-cast=none --model-type transformer -O1"
        compiler_args += " --tensorizer-options='--enable-ccop-compute-overlap'"
        return compiler_args

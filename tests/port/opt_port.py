"""OPT: learned positions that start at 2, ReLU MLP, biases everywhere."""

import json
import os
from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn

from nxdi.models.config import InferenceConfig, NeuronConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention.attention_base import NeuronAttentionBase
from nxdi.parallel_layers.layers import ColumnParallelLinear, ParallelEmbedding, RowParallelLinear

POSITION_OFFSET = 2


class OPTInferenceConfig(InferenceConfig):
    def add_derived_config(self):
        self.num_cores_per_group = 1
        self.num_key_value_heads = self.num_attention_heads
        self.intermediate_size = self.ffn_dim

    def get_required_attributes(self) -> List[str]:
        return [
            "hidden_size",
            "num_attention_heads",
            "num_hidden_layers",
            "ffn_dim",
            "vocab_size",
            "max_position_embeddings",
        ]

    @classmethod
    def get_neuron_config_cls(cls):
        return NeuronConfig

    @classmethod
    def from_pretrained(cls, model_path: str, **kwargs) -> "OPTInferenceConfig":
        neuron_config = kwargs.pop("neuron_config", None)
        model_path = os.path.expanduser(model_path)
        with open(os.path.join(model_path, "config.json")) as f:
            hf_config = json.load(f)
        if neuron_config is None:
            neuron_config = NeuronConfig(tp_degree=1, batch_size=1, seq_len=128)
        config_dict = {
            "hidden_size": hf_config["hidden_size"],
            "num_attention_heads": hf_config["num_attention_heads"],
            "num_hidden_layers": hf_config["num_hidden_layers"],
            "ffn_dim": hf_config.get("ffn_dim", 4 * hf_config["hidden_size"]),
            "vocab_size": hf_config["vocab_size"],
            "max_position_embeddings": hf_config.get("max_position_embeddings", 2048),
            "do_layer_norm_before": hf_config.get("do_layer_norm_before", True),
            "activation_function": hf_config.get("activation_function", "relu"),
            "pad_token_id": hf_config.get("pad_token_id", 1),
            "bos_token_id": hf_config.get("bos_token_id", 2),
            "eos_token_id": hf_config.get("eos_token_id", 2),
            "tie_word_embeddings": hf_config.get("tie_word_embeddings", True),
        }
        config_dict.update(kwargs)
        return cls(neuron_config=neuron_config, **config_dict)


class NeuronOPTAttention(NeuronAttentionBase):
    def __init__(self, config):
        super().__init__(
            config=config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            rotary_emb=None,
            qkv_bias=True,
            o_bias=True,
        )


class NeuronOPTDecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        dtype = config.neuron_config.torch_dtype
        self.self_attn = NeuronOPTAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size)
        self.fc1 = ColumnParallelLinear(
            config.hidden_size,
            config.ffn_dim,
            bias=True,
            gather_output=False,
            dtype=dtype,
            pad=True,
        )
        self.fc2 = RowParallelLinear(
            config.ffn_dim,
            config.hidden_size,
            bias=True,
            input_is_parallel=True,
            dtype=dtype,
            pad=True,
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
        hidden_states = self.self_attn_layer_norm(hidden_states)
        attn_output = self.self_attn(
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_value=past_key_value,
            **kwargs,
        )
        hidden_states = residual + attn_output.hidden_states

        residual = hidden_states
        hidden_states = self.final_layer_norm(hidden_states)
        hidden_states = self.fc2(F.relu(self.fc1(hidden_states)))
        hidden_states = residual + hidden_states

        return (
            hidden_states,
            attn_output.present_key_value,
            attn_output.cos_cache,
            attn_output.sin_cache,
            None,
        )


class NeuronOPTModel(NeuronBaseModel):
    def setup_attr_for_model(self, config):
        self.on_device_sampling = config.neuron_config.on_device_sampling_config is not None
        self.tp_degree = config.neuron_config.tp_degree
        self.hidden_size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.max_batch_size = config.neuron_config.max_batch_size
        self.buckets = config.neuron_config.buckets

    def init_model(self, config):
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        dtype = config.neuron_config.torch_dtype
        self.word_embeddings = ParallelEmbedding(
            config.vocab_size,
            config.hidden_size,
            self.padding_idx,
            dtype=dtype,
            shard_across_embedding=True,
            pad=True,
        )
        self.embed_positions = nn.Embedding(
            config.max_position_embeddings + POSITION_OFFSET, config.hidden_size
        )
        self.layers = nn.ModuleList(
            [NeuronOPTDecoderLayer(config) for _ in range(config.num_hidden_layers)]
        )
        self.norm = nn.LayerNorm(config.hidden_size)
        self.lm_head = ColumnParallelLinear(
            config.hidden_size, config.vocab_size, bias=False, pad=True, dtype=dtype
        )

    @property
    def embed_tokens(self):
        return self.word_embeddings

    def get_model_output(
        self,
        input_ids=None,
        seq_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        active_mask=None,
        inputs_embeds=None,
        **kwargs,
    ):
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        inputs_embeds = inputs_embeds + self.embed_positions(position_ids + POSITION_OFFSET)
        return super().get_model_output(
            input_ids=input_ids,
            seq_ids=seq_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            active_mask=active_mask,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class NeuronOPTForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronOPTModel
    _STATE_DICT_MODEL_PREFIX = "model.decoder."

    @staticmethod
    def load_hf_model(model_path, **kwargs):
        from transformers import OPTForCausalLM

        return OPTForCausalLM.from_pretrained(model_path, **kwargs)

    @staticmethod
    def convert_hf_to_neuron_state_dict(state_dict, config):
        new_state_dict = {}
        for key, value in state_dict.items():
            # the layers have a final_layer_norm too
            if key.startswith("final_layer_norm."):
                key = key.replace("final_layer_norm.", "norm.")
            key = key.replace("self_attn.out_proj.", "self_attn.o_proj.")
            key = key.replace("embed_tokens.", "word_embeddings.")
            new_state_dict[key] = value.detach().clone()
        for i in range(config.num_hidden_layers):
            new_state_dict[f"layers.{i}.self_attn.rank_util.rank"] = torch.arange(
                0, config.neuron_config.tp_degree, dtype=torch.int32
            )
        return new_state_dict

    @staticmethod
    def update_state_dict_for_tied_weights(state_dict):
        state_dict["lm_head.weight"] = state_dict["word_embeddings.weight"].clone()

    @staticmethod
    def get_config_cls():
        return OPTInferenceConfig

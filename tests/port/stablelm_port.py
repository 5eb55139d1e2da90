"""StableLM: LayerNorm, partial rotary embedding, biases on q, k and v; its own loop over layers."""

import json
from pathlib import Path
from typing import List, Optional, Tuple

import torch
from torch import nn

from nxdi.models.config import InferenceConfig, NeuronConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention.attention_base import NeuronAttentionBase
from nxdi.modules.attention.utils import RotaryEmbedding, apply_rotary_pos_emb
from nxdi.modules.flashdecode.utils import calculate_num_cores_per_group
from nxdi.parallel_layers.layers import ColumnParallelLinear, ParallelEmbedding, RowParallelLinear


class StableLmInferenceConfig(InferenceConfig):
    def add_derived_config(self):
        self.num_cores_per_group = 1
        if self.neuron_config.flash_decoding_enabled:
            self.num_cores_per_group = calculate_num_cores_per_group(
                self.num_attention_heads, self.num_key_value_heads, self.neuron_config.tp_degree
            )

    def get_required_attributes(self) -> List[str]:
        return [
            "hidden_size",
            "num_attention_heads",
            "num_key_value_heads",
            "num_hidden_layers",
            "intermediate_size",
            "layer_norm_eps",
            "use_qkv_bias",
        ]

    @classmethod
    def get_neuron_config_cls(cls):
        return NeuronConfig

    @classmethod
    def from_pretrained(cls, model_path, neuron_config=None, **kwargs):
        def load_config(self):
            params = json.loads((Path(model_path) / "config.json").read_text())
            # everything, as it is
            for key, value in params.items():
                setattr(self, key, value)

        return cls(neuron_config=neuron_config, load_config=load_config, **kwargs)


class NeuronStableLmAttention(NeuronAttentionBase):
    def __init__(self, config):
        head_dim = config.hidden_size // config.num_attention_heads
        rotary_ndims = int(head_dim * config.partial_rotary_factor)
        super().__init__(
            config=config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=head_dim,
            rotary_emb=RotaryEmbedding(
                rotary_ndims, config.max_position_embeddings, getattr(config, "rope_theta", 10000)
            ),
            qkv_bias=config.use_qkv_bias,
            o_bias=False,
            num_cores_per_group=config.num_cores_per_group,
        )
        self.rotary_ndims = rotary_ndims

    def apply_rotary_embedding(
        self, Q, K, V, position_ids, cos_cache, sin_cache, use_polar_compatible_rope
    ):
        if cos_cache is None or sin_cache is None:
            cos_cache, sin_cache = self.rotary_emb(V, position_ids)
        q_rot, q_pass = Q.split([self.rotary_ndims, self.head_dim - self.rotary_ndims], dim=-1)
        k_rot, k_pass = K.split([self.rotary_ndims, self.head_dim - self.rotary_ndims], dim=-1)
        q_rot, k_rot = apply_rotary_pos_emb(q_rot, k_rot, cos_cache, sin_cache)
        return (
            torch.cat((q_rot, q_pass), dim=-1),
            torch.cat((k_rot, k_pass), dim=-1),
            cos_cache,
            sin_cache,
        )


class NeuronStableLmMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        dtype = config.neuron_config.torch_dtype
        sizes = (config.hidden_size, config.intermediate_size)
        self.gate_proj = ColumnParallelLinear(
            *sizes, bias=False, gather_output=False, dtype=dtype, pad=True
        )
        self.up_proj = ColumnParallelLinear(
            *sizes, bias=False, gather_output=False, dtype=dtype, pad=True
        )
        self.down_proj = RowParallelLinear(
            *reversed(sizes), bias=False, input_is_parallel=True, dtype=dtype, pad=True
        )

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class NeuronStableLmDecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = NeuronStableLmAttention(config)
        self.mlp = NeuronStableLmMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.LongTensor] = None,
        past_key_value: Optional[Tuple[torch.Tensor]] = None,
        **kwargs,
    ):
        residual = hidden_states
        hidden_states, present_key_value, cos_cache, sin_cache = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_value=past_key_value,
            **kwargs,
        )
        hidden_states = residual + hidden_states
        hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return (hidden_states, present_key_value, cos_cache, sin_cache, None)


class NeuronStableLmModel(NeuronBaseModel):
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
        self.embed_tokens = ParallelEmbedding(
            config.vocab_size,
            config.hidden_size,
            self.padding_idx,
            dtype=dtype,
            shard_across_embedding=True,
            pad=True,
        )
        self.layers = nn.ModuleList(
            [NeuronStableLmDecoderLayer(config) for _ in range(config.num_hidden_layers)]
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.lm_head = ColumnParallelLinear(
            config.hidden_size,
            config.vocab_size,
            bias=False,
            pad=True,
            dtype=dtype,
            gather_output=not self.on_device_sampling,
        )

    def get_model_output(
        self,
        input_ids: torch.LongTensor = None,
        seq_ids: Optional[torch.LongTensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.LongTensor] = None,
        past_key_values: Optional[List[torch.FloatTensor]] = None,
        active_mask: Optional[torch.Tensor] = None,
        inputs_embeds: Optional[torch.FloatTensor] = None,
        adapter_ids: Optional[torch.LongTensor] = None,
        rotary_position_ids: Optional[torch.LongTensor] = None,
        update_cache: bool = False,
        is_for_context_encoding: bool = False,
        **kwargs,
    ):
        batch_size, seq_length = input_ids.shape[:2]
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        position_ids = position_ids.view(-1, seq_length).long()

        hidden_states = self.process_sequence_parallel_hidden_states(
            inputs_embeds, seq_length, kwargs.get("active_block_table", None)
        )

        cache_size = self.n_positions
        if not is_for_context_encoding:
            past_key_values = self.kv_mgr.get_cache(
                seq_ids=seq_ids,
                seq_len=cache_size,
                is_for_context_encoding=is_for_context_encoding,
            )

        cos_cache = None
        sin_cache = None
        new_key_values = ()
        for idx, decoder_layer in enumerate(self.layers):
            past_key_value = past_key_values[idx] if past_key_values is not None else None
            layer_outputs = decoder_layer(
                hidden_states,
                seq_ids=seq_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_value=past_key_value,
                active_mask=active_mask,
                adapter_ids=adapter_ids,
                cos_cache=cos_cache,
                sin_cache=sin_cache,
                rotary_position_ids=rotary_position_ids,
                kv_mgr=self.kv_mgr,
                get_kv_per_layer=False,
                update_kv_per_layer=False,
                idx=idx,
                is_for_context_encoding=is_for_context_encoding,
                seq_len=cache_size,
                residual=None,
                local_mask=None,
                windowed_context_encoding_window_idx=-1,
                padding_mask=None,
                **kwargs,
            )
            hidden_states = layer_outputs[0]
            new_key_values += (layer_outputs[1],)
            cos_cache, sin_cache = layer_outputs[2:4]

        if update_cache:
            new_key_values = self.kv_mgr.update_cache(
                is_for_context_encoding=is_for_context_encoding,
                seq_ids=seq_ids,
                position_ids=position_ids,
                new_key_values=new_key_values,
                seq_len=cache_size,
            )

        return self.norm(hidden_states), new_key_values


class NeuronStableLmForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronStableLmModel

    @staticmethod
    def load_hf_model(model_path, **kwargs):
        from transformers import StableLmForCausalLM

        return StableLmForCausalLM.from_pretrained(model_path, **kwargs)

    @staticmethod
    def convert_hf_to_neuron_state_dict(state_dict, config):
        for i in range(config.num_hidden_layers):
            state_dict[f"layers.{i}.self_attn.rank_util.rank"] = torch.arange(
                0, config.neuron_config.tp_degree, dtype=torch.int32
            )
        state_dict["rank_util.rank"] = torch.arange(
            0, config.neuron_config.tp_degree, dtype=torch.int32
        )
        return state_dict

    @staticmethod
    def get_config_cls():
        return StableLmInferenceConfig

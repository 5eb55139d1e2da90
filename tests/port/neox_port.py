"""GPT-NeoX (Pythia): partial rotary embedding, parallel residual, fused and interleaved QKV."""

import json
import os
from typing import List, Optional, Tuple, Type

import torch
from torch import nn
from transformers.activations import ACT2FN

from nxdi.models.config import InferenceConfig, NeuronConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention.attention_base import NeuronAttentionBase
from nxdi.modules.attention.utils import apply_rotary_pos_emb
from nxdi.parallel_layers import parallel_state
from nxdi.parallel_layers.layers import ColumnParallelLinear, ParallelEmbedding, RowParallelLinear


class GPTNeoXRotaryEmbedding(nn.Module):
    """Tables of all positions, made once."""

    def __init__(self, dim, max_position_embeddings=2048, base=10000):
        super().__init__()
        inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim))
        freqs = torch.outer(torch.arange(max_position_embeddings).float(), inv_freq)
        emb = torch.cat((freqs, freqs), dim=-1)
        self.cos_cached = emb.cos()
        self.sin_cached = emb.sin()

    def forward(self, x, position_ids):
        return self.cos_cached[position_ids].to(x.dtype), self.sin_cached[position_ids].to(x.dtype)


class GPTNeoXNeuronConfig(NeuronConfig):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attn_cls = NeuronGPTNeoXAttention


class GPTNeoXInferenceConfig(InferenceConfig):
    def add_derived_config(self):
        self.num_cores_per_group = 1
        self.num_key_value_heads = self.num_attention_heads
        self.head_dim = self.hidden_size // self.num_attention_heads
        self.rotary_ndims = int(self.head_dim * self.rotary_pct)

    def get_required_attributes(self) -> List[str]:
        return [
            "hidden_size",
            "num_attention_heads",
            "num_hidden_layers",
            "intermediate_size",
            "vocab_size",
            "rotary_pct",
            "rotary_emb_base",
            "layer_norm_eps",
        ]

    @classmethod
    def get_neuron_config_cls(cls) -> Type[GPTNeoXNeuronConfig]:
        return GPTNeoXNeuronConfig

    @classmethod
    def from_pretrained(cls, model_path: str, neuron_config: Optional[NeuronConfig] = None):
        with open(os.path.join(model_path, "config.json")) as f:
            params = json.load(f)

        def load_config(self):
            for name in (
                "hidden_size",
                "num_attention_heads",
                "num_hidden_layers",
                "intermediate_size",
                "vocab_size",
                "hidden_act",
                "layer_norm_eps",
                "max_position_embeddings",
                "use_parallel_residual",
                "bos_token_id",
                "eos_token_id",
                "tie_word_embeddings",
            ):
                setattr(self, name, params[name])
            self.rotary_pct = params.get("rotary_pct", 0.25)
            self.rotary_emb_base = params.get("rotary_emb_base", 10000)
            self.pad_token_id = params.get("pad_token_id", 0)

        return cls(neuron_config=neuron_config or GPTNeoXNeuronConfig(), load_config=load_config)


class NeuronGPTNeoXAttention(NeuronAttentionBase):
    def __init__(self, config: GPTNeoXInferenceConfig):
        rotary_emb = GPTNeoXRotaryEmbedding(
            config.rotary_ndims, config.max_position_embeddings, config.rotary_emb_base
        )
        super().__init__(
            config=config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_emb=rotary_emb,
            qkv_bias=True,
            o_bias=True,
            rms_norm_eps=config.layer_norm_eps,
        )
        self.rotary_ndims = config.rotary_ndims

    def apply_rotary_embedding(
        self, Q, K, V, position_ids, cos_cache, sin_cache, use_polar_compatible_rope
    ):
        if self.rotary_emb is not None:
            if cos_cache is None or sin_cache is None:
                cos_cache, sin_cache = self.rotary_emb(V, position_ids)
            Q_rot, Q_pass = Q[..., : self.rotary_ndims], Q[..., self.rotary_ndims :]
            K_rot, K_pass = K[..., : self.rotary_ndims], K[..., self.rotary_ndims :]
            Q_rot, K_rot = apply_rotary_pos_emb(Q_rot, K_rot, cos_cache, sin_cache)
            Q = torch.cat((Q_rot, Q_pass), dim=-1)
            K = torch.cat((K_rot, K_pass), dim=-1)
        return Q, K, cos_cache, sin_cache


class NeuronGPTNeoXMLP(nn.Module):
    def __init__(self, config: GPTNeoXInferenceConfig):
        super().__init__()
        dtype = config.neuron_config.torch_dtype
        if parallel_state.model_parallel_is_initialized():
            self.dense_h_to_4h = ColumnParallelLinear(
                config.hidden_size,
                config.intermediate_size,
                bias=True,
                gather_output=False,
                dtype=dtype,
                pad=True,
            )
            self.dense_4h_to_h = RowParallelLinear(
                config.intermediate_size,
                config.hidden_size,
                bias=True,
                input_is_parallel=True,
                dtype=dtype,
                pad=True,
            )
        else:
            self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size)
            self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden_states):
        return self.dense_4h_to_h(self.act(self.dense_h_to_4h(hidden_states)))


class NeuronGPTNeoXLayer(nn.Module):
    def __init__(self, config: GPTNeoXInferenceConfig):
        super().__init__()
        self.use_parallel_residual = config.use_parallel_residual
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = NeuronGPTNeoXAttention(config)
        self.mlp = NeuronGPTNeoXMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.LongTensor] = None,
        past_key_value: Optional[Tuple[torch.Tensor]] = None,
        cos_cache: Optional[torch.Tensor] = None,
        sin_cache: Optional[torch.Tensor] = None,
        **kwargs,
    ):
        residual = hidden_states
        attn_output, present_key_value, cos_cache, sin_cache = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_value=past_key_value,
            cos_cache=cos_cache,
            sin_cache=sin_cache,
            **kwargs,
        )
        if self.use_parallel_residual:
            # x = x + attn(ln1(x)) + mlp(ln2(x))
            mlp_output = self.mlp(self.post_attention_layernorm(residual))
            hidden_states = mlp_output + attn_output + residual
        else:
            attn_output = attn_output + residual
            hidden_states = self.mlp(self.post_attention_layernorm(attn_output)) + attn_output
        return (hidden_states, present_key_value, cos_cache, sin_cache, None)


class NeuronGPTNeoXModel(NeuronBaseModel):
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
        if parallel_state.model_parallel_is_initialized():
            self.embed_tokens = ParallelEmbedding(
                config.vocab_size,
                config.hidden_size,
                self.padding_idx,
                dtype=config.neuron_config.torch_dtype,
                shard_across_embedding=not config.neuron_config.vocab_parallel,
                sequence_parallel_enabled=False,
                pad=True,
                use_spmd_rank=config.neuron_config.vocab_parallel,
            )
            self.lm_head = ColumnParallelLinear(
                config.hidden_size,
                config.vocab_size,
                gather_output=not self.on_device_sampling,
                dtype=config.neuron_config.torch_dtype,
                bias=False,
                pad=True,
            )
        else:
            self.embed_tokens = nn.Embedding(
                config.vocab_size, config.hidden_size, self.padding_idx
            )
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.layers = nn.ModuleList(
            [NeuronGPTNeoXLayer(config) for _ in range(config.num_hidden_layers)]
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class NeuronGPTNeoXForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronGPTNeoXModel
    _STATE_DICT_MODEL_PREFIX = "gpt_neox."

    @staticmethod
    def load_hf_model(model_path, **kwargs):
        from transformers import GPTNeoXForCausalLM

        return GPTNeoXForCausalLM.from_pretrained(model_path, **kwargs)

    @staticmethod
    def convert_hf_to_neuron_state_dict(state_dict: dict, config: InferenceConfig) -> dict:
        neuron_config = config.neuron_config
        num_heads, head_dim, hidden_size = (
            config.num_attention_heads,
            config.head_dim,
            config.hidden_size,
        )
        new_state_dict = {}
        for key, value in state_dict.items():
            if "rotary_emb" in key or "attention.bias" in key or "masked_bias" in key:
                continue
            new_key = key.replace("embed_in.", "embed_tokens.").replace("embed_out.", "lm_head.")
            new_key = new_key.replace("final_layer_norm.", "norm.")
            new_key = new_key.replace(".attention.dense.", ".self_attn.o_proj.")
            if ".attention.query_key_value." in key:
                # [head, (q, k, v), head_dim] -> three of [head, head_dim]
                prefix, kind = key.split(".attention.query_key_value.")
                parts = value.reshape(num_heads, 3, head_dim, -1)
                for j, name in enumerate(("q_proj", "k_proj", "v_proj")):
                    part = parts[:, j].reshape(hidden_size, -1)
                    part = part.squeeze(-1) if kind == "bias" else part
                    new_state_dict[f"{prefix}.self_attn.qkv_proj.{name}.{kind}"] = part.clone()
                continue
            new_state_dict[new_key] = value
        tp_degree = neuron_config.tp_degree
        for i in range(config.num_hidden_layers):
            new_state_dict[f"layers.{i}.self_attn.rank_util.rank"] = torch.arange(
                0, tp_degree, dtype=torch.int32
            )
        if neuron_config.vocab_parallel:
            new_state_dict["embed_tokens.rank_util.rank"] = torch.arange(
                0, neuron_config.local_ranks_size
            )
        new_state_dict["rank_util.rank"] = torch.arange(0, tp_degree, dtype=torch.int32)
        return new_state_dict

    @classmethod
    def get_config_cls(cls) -> Type[GPTNeoXInferenceConfig]:
        return GPTNeoXInferenceConfig

    def get_compiler_args(self) -> str:
        return "--model-type=transformer -O1 --auto-cast=none"

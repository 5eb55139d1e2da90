"""Qwen3-MoE: norms on query and key heads, and a mixture of experts in every layer."""

import torch
from torch import nn
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from nxdi.models.config import InferenceConfig, MoENeuronConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention.attention_base import NeuronAttentionBase
from nxdi.modules.attention.utils import RotaryEmbedding
from nxdi.modules.custom_calls import CustomRMSNorm
from nxdi.modules.moe_v2 import initialize_moe_module
from nxdi.parallel_layers.layers import ColumnParallelLinear, ParallelEmbedding
from nxdi.utils import cpu_mode


def get_rmsnorm_cls():
    return LlamaRMSNorm if cpu_mode() else CustomRMSNorm


class Qwen3MoeInferenceConfig(InferenceConfig):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # The names that initialize_moe_module reads.
        self.num_local_experts = self.num_experts
        self.n_shared_experts = 0
        self.intermediate_size = self.moe_intermediate_size
        self.neuron_config.router_config.dtype = torch.float32
        self.neuron_config.router_config.act_fn = "softmax"
        self.neuron_config.normalize_top_k_affinities = self.norm_topk_prob
        self.neuron_config.disable_numeric_cc_token = True

    def add_derived_config(self):
        self.num_cores_per_group = 1

    def get_required_attributes(self):
        return [
            "head_dim",
            "hidden_act",
            "hidden_size",
            "max_position_embeddings",
            "moe_intermediate_size",
            "norm_topk_prob",
            "num_attention_heads",
            "num_experts",
            "num_experts_per_tok",
            "num_hidden_layers",
            "num_key_value_heads",
            "rms_norm_eps",
            "rope_theta",
            "vocab_size",
        ]

    @classmethod
    def get_neuron_config_cls(cls):
        return MoENeuronConfig

    @classmethod
    def from_pretrained(cls, model_path, neuron_config=None, **kwargs):
        hf_config = AutoConfig.from_pretrained(model_path)

        def load_config(self):
            for key, value in hf_config.to_dict().items():
                setattr(self, key, value)
            self.num_experts = hf_config.num_experts
            self.rope_theta = 10000.0

        return cls(neuron_config=neuron_config, load_config=load_config, **kwargs)


class NeuronQwen3MoeAttention(NeuronAttentionBase):
    def __init__(self, config):
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
            rms_norm_eps=config.rms_norm_eps,
            use_qk_norm=False,
        )
        self.q_layernorm = get_rmsnorm_cls()(self.head_dim, self.rms_norm_eps)
        self.k_layernorm = get_rmsnorm_cls()(self.head_dim, self.rms_norm_eps)


class NeuronQwen3MoeDecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = NeuronQwen3MoeAttention(config)
        self.input_layernorm = get_rmsnorm_cls()(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = get_rmsnorm_cls()(
            config.hidden_size, eps=config.rms_norm_eps
        )
        self.moe_fused_nki_kernel_enabled = config.neuron_config.moe_fused_nki_kernel_enabled
        if self.moe_fused_nki_kernel_enabled:
            self.mlp = initialize_moe_module(
                config=config, rmsnorm=self.post_attention_layernorm, init_tkg_module=True
            )
        else:
            self.mlp = initialize_moe_module(config=config)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        position_ids=None,
        past_key_value=None,
        padding_mask=None,
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
        hidden_states = residual + hidden_states
        residual = hidden_states
        if not self.moe_fused_nki_kernel_enabled:
            hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states, padding_mask)[0]
        hidden_states = residual + hidden_states
        return (hidden_states, present_key_value, cos_cache, sin_cache, None)


class NeuronQwen3MoeModel(NeuronBaseModel):
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
        self.embed_tokens = ParallelEmbedding(
            config.vocab_size,
            config.hidden_size,
            self.padding_idx,
            dtype=config.neuron_config.torch_dtype,
            shard_across_embedding=True,
        )
        self.layers = nn.ModuleList(
            [NeuronQwen3MoeDecoderLayer(config) for _ in range(config.num_hidden_layers)]
        )
        self.norm = get_rmsnorm_cls()(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = ColumnParallelLinear(
            config.hidden_size,
            config.vocab_size,
            gather_output=not self.on_device_sampling,
            bias=False,
            pad=True,
        )


class NeuronQwen3MoeForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronQwen3MoeModel

    @staticmethod
    def convert_hf_to_neuron_state_dict(state_dict, config):
        for layer in range(config.num_hidden_layers):
            prefix = f"layers.{layer}"
            for name in ("q", "k"):
                state_dict[f"{prefix}.self_attn.{name}_layernorm.weight"] = state_dict.pop(
                    f"{prefix}.self_attn.{name}_norm.weight"
                )
            state_dict[f"{prefix}.mlp.router.linear_router.weight"] = state_dict.pop(
                f"{prefix}.mlp.gate.weight"
            )
            if config.neuron_config.moe_fused_nki_kernel_enabled:
                norm = state_dict[f"{prefix}.post_attention_layernorm.weight"]
                copy = f"{prefix}.mlp.moe_fused_tkg.post_attention_layernorm.weight"
                state_dict[copy] = norm.clone()
            experts = [
                {
                    name: state_dict.pop(f"{prefix}.mlp.experts.{e}.{name}_proj.weight")
                    for name in ("gate", "up", "down")
                }
                for e in range(config.num_experts)
            ]
            state_dict[f"{prefix}.mlp.expert_mlps.mlp_op.gate_up_proj.weight"] = torch.stack(
                [torch.cat([expert["gate"].T, expert["up"].T], dim=1) for expert in experts]
            )
            state_dict[f"{prefix}.mlp.expert_mlps.mlp_op.down_proj.weight"] = torch.stack(
                [expert["down"].T for expert in experts]
            )
        return state_dict

    @classmethod
    def get_config_cls(cls):
        return Qwen3MoeInferenceConfig

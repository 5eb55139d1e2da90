"""SmolLM3: Llama in which every fourth layer has no rotary embedding."""

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
from nxdi.parallel_layers.layers import ColumnParallelLinear, ParallelEmbedding
from nxdi.utils import cpu_mode
from nxdi.utils.distributed import get_tp_group


def get_rmsnorm_cls():
    return CustomRMSNorm if not cpu_mode() else LlamaRMSNorm


class SmolLM3NeuronConfig(NeuronConfig):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attn_cls = NeuronSmolLM3Attention


class SmolLM3InferenceConfig(InferenceConfig):
    def add_derived_config(self):
        self.num_cores_per_group = 1
        if not hasattr(self, "no_rope_layers"):
            interval = getattr(self, "no_rope_layer_interval", 4)
            self.no_rope_layers = [
                int((i + 1) % interval != 0) for i in range(self.num_hidden_layers)
            ]

    def get_required_attributes(self) -> List[str]:
        return [
            "hidden_size",
            "num_attention_heads",
            "num_hidden_layers",
            "num_key_value_heads",
            "rope_theta",
            "rms_norm_eps",
        ]

    @classmethod
    def get_neuron_config_cls(cls) -> Type[SmolLM3NeuronConfig]:
        return SmolLM3NeuronConfig


class NeuronSmolLM3Attention(NeuronAttentionBase):
    def __init__(self, config: SmolLM3InferenceConfig, layer_idx: int):
        self.layer_idx = layer_idx
        self.use_rope = bool(config.no_rope_layers[layer_idx])
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
            qkv_bias=config.attention_bias,
            o_bias=config.attention_bias,
            num_cores_per_group=config.num_cores_per_group,
            rms_norm_eps=config.rms_norm_eps,
        )

    def apply_rotary_embedding(
        self, Q, K, V, position_ids, cos_cache, sin_cache, use_polar_compatible_rope
    ):
        if not self.use_rope:
            return Q, K, cos_cache, sin_cache
        return super().apply_rotary_embedding(
            Q, K, V, position_ids, cos_cache, sin_cache, use_polar_compatible_rope
        )


class NeuronSmolLM3DecoderLayer(nn.Module):
    def __init__(self, config: SmolLM3InferenceConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.hidden_size = config.hidden_size
        self.self_attn = NeuronSmolLM3Attention(config, layer_idx)
        self.mlp = NeuronLlamaMLP(config)
        self.input_layernorm = get_rmsnorm_cls()(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = get_rmsnorm_cls()(
            config.hidden_size, eps=config.rms_norm_eps
        )
        self.qkv_kernel_enabled = config.neuron_config.qkv_kernel_enabled
        self.mlp_kernel_enabled = config.neuron_config.mlp_kernel_enabled
        self.sequence_parallel_enabled = config.neuron_config.sequence_parallel_enabled

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.LongTensor] = None,
        past_key_value: Optional[Tuple[torch.Tensor]] = None,
        **kwargs,
    ):
        residual = hidden_states
        # the fused kernels bring their own norm
        if not self.qkv_kernel_enabled or self.sequence_parallel_enabled:
            hidden_states = self.input_layernorm(hidden_states)
        hidden_states, present_key_value, cos_cache, sin_cache = self.self_attn(
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_value=past_key_value,
            rmsnorm=self.input_layernorm,
            **kwargs,
        )
        hidden_states = residual + hidden_states

        residual = hidden_states
        if not self.mlp_kernel_enabled or self.sequence_parallel_enabled:
            hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states, _ = self.mlp(hidden_states, rmsnorm=self.post_attention_layernorm)
        hidden_states = residual + hidden_states

        return (hidden_states, present_key_value, cos_cache, sin_cache, None)


class NeuronSmolLM3Model(NeuronBaseModel):
    def setup_attr_for_model(self, config: SmolLM3InferenceConfig):
        self.on_device_sampling = config.neuron_config.on_device_sampling_config is not None
        self.tp_degree = config.neuron_config.tp_degree
        self.hidden_size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.max_batch_size = config.neuron_config.max_batch_size
        self.buckets = config.neuron_config.buckets

    def init_model(self, config: SmolLM3InferenceConfig):
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = ParallelEmbedding(
            config.vocab_size,
            config.hidden_size,
            self.padding_idx,
            dtype=config.neuron_config.torch_dtype,
            shard_across_embedding=not config.neuron_config.vocab_parallel,
            sequence_parallel_enabled=config.neuron_config.sequence_parallel_enabled,
            sequence_dimension=self.sequence_dimension,
            pad=True,
            tensor_model_parallel_group=get_tp_group(config),
            use_spmd_rank=config.neuron_config.vocab_parallel,
        )
        self.layers = nn.ModuleList(
            [NeuronSmolLM3DecoderLayer(config, i) for i in range(config.num_hidden_layers)]
        )
        self.norm = get_rmsnorm_cls()(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = ColumnParallelLinear(
            config.hidden_size,
            config.vocab_size,
            gather_output=not self.on_device_sampling,
            bias=False,
            pad=True,
            dtype=config.neuron_config.torch_dtype,
            tensor_model_parallel_group=get_tp_group(config),
        )


class NeuronSmolLM3ForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronSmolLM3Model

    @staticmethod
    def load_hf_model(model_path, **kwargs):
        from transformers import SmolLM3ForCausalLM

        return SmolLM3ForCausalLM.from_pretrained(model_path, **kwargs)

    @staticmethod
    def convert_hf_to_neuron_state_dict(state_dict, config):
        neuron_config = config.neuron_config
        if neuron_config.vocab_parallel:
            state_dict["embed_tokens.rank_util.rank"] = torch.arange(
                0, neuron_config.local_ranks_size
            )
        for i in range(config.num_hidden_layers):
            state_dict[f"layers.{i}.self_attn.rank_util.rank"] = torch.arange(
                0, neuron_config.tp_degree, dtype=torch.int32
            )
        state_dict["rank_util.rank"] = torch.arange(0, neuron_config.tp_degree, dtype=torch.int32)
        return state_dict

    @staticmethod
    def update_state_dict_for_tied_weights(state_dict):
        state_dict["lm_head.weight"] = state_dict["embed_tokens.weight"].clone()

    @classmethod
    def get_config_cls(cls) -> Type[SmolLM3InferenceConfig]:
        return SmolLM3InferenceConfig

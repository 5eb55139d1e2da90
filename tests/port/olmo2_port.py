"""OLMo-2: norms after each block, query and key normalised over their full width."""

from typing import List, Optional, Tuple

import torch
from torch import nn
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from nxdi.models.config import InferenceConfig, NeuronConfig
from nxdi.models.llama.modeling_llama import NeuronLlamaMLP
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention.attention_base import NeuronAttentionBase
from nxdi.modules.attention.utils import RotaryEmbedding, move_heads_front
from nxdi.modules.custom_calls import CustomRMSNorm
from nxdi.parallel_layers import parallel_state
from nxdi.parallel_layers.layers import BaseParallelLinear, ColumnParallelLinear, ParallelEmbedding
from nxdi.parallel_layers.mappings import reduce_from_tensor_model_parallel_region
from nxdi.parallel_layers.utils import divide, set_tensor_model_parallel_attributes
from nxdi.utils import cpu_mode
from nxdi.utils.distributed import get_tp_group


def get_rmsnorm_cls():
    return LlamaRMSNorm if cpu_mode() else CustomRMSNorm


class ShardedRMSNorm(BaseParallelLinear):
    """RMSNorm over a dimension that is spread over the ranks."""

    def __init__(self, hidden_size, eps, dtype, tensor_model_parallel_group=None):
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.tensor_model_parallel_group = tensor_model_parallel_group
        world_size = (
            tensor_model_parallel_group.size()
            if tensor_model_parallel_group is not None
            else parallel_state.get_tensor_model_parallel_size()
        )
        self.weight = nn.Parameter(
            torch.ones(divide(hidden_size, world_size), dtype=dtype), requires_grad=False
        )
        set_tensor_model_parallel_attributes(
            tensor=self.weight, is_parallel=True, dim=0, stride=1, num_partitions=world_size
        )

    def forward(self, x):
        dtype = x.dtype
        x = x.to(torch.float32)
        sum_of_squares = x.pow(2).sum(-1, keepdim=True)
        sum_of_squares = reduce_from_tensor_model_parallel_region(
            sum_of_squares, process_group=self.tensor_model_parallel_group
        )
        x = x * torch.rsqrt(sum_of_squares / self.hidden_size + self.eps)
        return self.weight * x.to(dtype)


class Olmo2InferenceConfig(InferenceConfig):
    def add_derived_config(self):
        self.num_cores_per_group = 1
        self.head_dim = self.hidden_size // self.num_attention_heads

    def get_required_attributes(self) -> List[str]:
        return [
            "hidden_size",
            "num_attention_heads",
            "num_key_value_heads",
            "num_hidden_layers",
            "vocab_size",
            "max_position_embeddings",
            "rms_norm_eps",
            "hidden_act",
        ]

    @classmethod
    def get_neuron_config_cls(cls):
        return NeuronConfig

    @classmethod
    def from_pretrained(cls, model_path, neuron_config=None, **kwargs):
        hf_config = AutoConfig.from_pretrained(model_path)

        def load_config(self):
            for key, value in hf_config.to_dict().items():
                setattr(self, key, value)

        return cls(neuron_config=neuron_config, load_config=load_config, **kwargs)


class NeuronOlmo2Attention(NeuronAttentionBase):
    def __init__(self, config):
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
                base=getattr(config, "rope_theta", 10000.0),
            ),
            rms_norm_eps=config.rms_norm_eps,
        )
        norm_args = (
            config.rms_norm_eps,
            config.neuron_config.torch_dtype,
            self.tensor_model_parallel_group,
        )
        self.q_norm = ShardedRMSNorm(config.num_attention_heads * head_dim, *norm_args)
        self.k_norm = ShardedRMSNorm(config.num_key_value_heads * head_dim, *norm_args)

    def prep_qkv_tensors(
        self,
        position_ids,
        hidden_states,
        past_key_value,
        adapter_ids=None,
        cos_cache=None,
        sin_cache=None,
        rmsnorm=None,
        skip_rope=False,
        residual=None,
        use_polar_compatible_rope=False,
    ):
        Q, K, V, residual = self.get_qkv_proj()(
            hidden_states=hidden_states, rmsnorm=rmsnorm, adapter_ids=adapter_ids, residual=residual
        )
        Q = self.q_norm(Q)
        K = self.k_norm(K)

        bsz, q_len, _ = hidden_states.size()
        if self.qkv_proj_sp_enabled:
            q_len *= self.tensor_model_parallel_group.size()
        Q = move_heads_front(Q, bsz, q_len, self.num_heads, self.head_dim, layernorm=None)
        K = move_heads_front(K, bsz, q_len, self.num_key_value_heads, self.head_dim, layernorm=None)
        V = move_heads_front(V, bsz, q_len, self.num_key_value_heads, self.head_dim, layernorm=None)

        if not skip_rope:
            Q, K, cos_cache, sin_cache = self.apply_rotary_embedding(
                Q, K, V, position_ids, cos_cache, sin_cache, use_polar_compatible_rope
            )
        return Q, K, V, cos_cache, sin_cache, residual


class NeuronOlmo2DecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.self_attn = NeuronOlmo2Attention(config)
        self.mlp = NeuronLlamaMLP(config)
        self.post_attention_layernorm = get_rmsnorm_cls()(
            config.hidden_size, eps=config.rms_norm_eps
        )
        self.post_feedforward_layernorm = get_rmsnorm_cls()(
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
        hidden_states, present_key_value, cos_cache, sin_cache = self.self_attn(
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_value=past_key_value,
            **kwargs,
        )
        hidden_states = residual + self.post_attention_layernorm(hidden_states)
        residual = hidden_states
        hidden_states = self.mlp(hidden_states)[0]
        hidden_states = residual + self.post_feedforward_layernorm(hidden_states)
        outputs = (hidden_states, present_key_value, cos_cache, sin_cache, None)
        return outputs


class NeuronOlmo2Model(NeuronBaseModel):
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
            shard_across_embedding=not config.neuron_config.vocab_parallel,
            sequence_parallel_enabled=config.neuron_config.sequence_parallel_enabled,
            sequence_dimension=1,
            pad=True,
            tensor_model_parallel_group=get_tp_group(config),
            use_spmd_rank=config.neuron_config.vocab_parallel,
        )
        self.layers = nn.ModuleList(
            [NeuronOlmo2DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        )
        self.norm = get_rmsnorm_cls()(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = ColumnParallelLinear(
            config.hidden_size,
            config.vocab_size,
            gather_output=not self.on_device_sampling,
            dtype=config.neuron_config.torch_dtype,
            bias=False,
            pad=True,
            tensor_model_parallel_group=get_tp_group(config),
        )


class NeuronOlmo2ForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronOlmo2Model

    @staticmethod
    def load_hf_model(model_path, **kwargs):
        from transformers import Olmo2ForCausalLM

        return Olmo2ForCausalLM.from_pretrained(model_path, **kwargs)

    @staticmethod
    def convert_hf_to_neuron_state_dict(state_dict, config):
        neuron_config = config.neuron_config
        if neuron_config.vocab_parallel:
            state_dict["embed_tokens.rank_util.rank"] = torch.arange(
                0, neuron_config.local_ranks_size
            )
        for i in range(config.num_hidden_layers):
            for name in ("q_proj", "k_proj", "v_proj"):
                state_dict[f"layers.{i}.self_attn.qkv_proj.{name}.weight"] = state_dict.pop(
                    f"layers.{i}.self_attn.{name}.weight"
                )
            state_dict[f"layers.{i}.self_attn.rank_util.rank"] = torch.arange(
                0, neuron_config.tp_degree, dtype=torch.int32
            )
        state_dict["rank_util.rank"] = torch.arange(0, neuron_config.tp_degree, dtype=torch.int32)
        return state_dict

    @classmethod
    def get_config_cls(cls):
        return Olmo2InferenceConfig

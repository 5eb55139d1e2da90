"""GPT-2: learned absolute positions, pre-LayerNorm, Conv1D weights, tied embeddings."""

from typing import List, Optional, Tuple, Type

import torch
from torch import nn
from transformers import GPT2LMHeadModel
from transformers.activations import ACT2FN

from nxdi.models.config import InferenceConfig, NeuronConfig
from nxdi.models.model_base import NeuronBaseForCausalLM, NeuronBaseModel
from nxdi.modules.attention.attention_base import NeuronAttentionBase
from nxdi.parallel_layers import parallel_state
from nxdi.parallel_layers.layers import (
    ColumnParallelLinear,
    ParallelEmbedding,
    RowParallelLinear,
)
from nxdi.utils.distributed import get_tp_group


class GPT2NeuronConfig(NeuronConfig):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attn_cls = NeuronGPT2Attention


class GPT2InferenceConfig(InferenceConfig):
    def add_derived_config(self):
        self.num_cores_per_group = 1
        self.hidden_size = self.n_embd
        self.num_attention_heads = self.n_head
        self.num_key_value_heads = self.n_head
        self.num_hidden_layers = self.n_layer
        self.intermediate_size = self.n_inner if self.n_inner is not None else 4 * self.n_embd

    def get_required_attributes(self) -> List[str]:
        return ["n_embd", "n_head", "n_layer", "n_positions", "vocab_size", "layer_norm_epsilon"]

    @classmethod
    def get_neuron_config_cls(cls) -> Type[GPT2NeuronConfig]:
        return GPT2NeuronConfig


class NeuronGPT2Attention(NeuronAttentionBase):
    def __init__(self, config: GPT2InferenceConfig):
        super().__init__(
            config=config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            qkv_bias=True,
            o_bias=True,
            rotary_emb=None,
            num_cores_per_group=config.num_cores_per_group,
        )


class NeuronGPT2MLP(nn.Module):
    def __init__(self, config: GPT2InferenceConfig):
        super().__init__()
        self.sequence_parallel_enabled = config.neuron_config.sequence_parallel_enabled
        self.sequence_dimension = 1 if self.sequence_parallel_enabled else None
        if parallel_state.model_parallel_is_initialized():
            self.c_fc = ColumnParallelLinear(
                config.hidden_size,
                config.intermediate_size,
                bias=True,
                gather_output=False,
                dtype=config.neuron_config.torch_dtype,
                pad=True,
                sequence_parallel_enabled=self.sequence_parallel_enabled,
                sequence_dimension=self.sequence_dimension,
                tensor_model_parallel_group=get_tp_group(config),
            )
            self.c_proj = RowParallelLinear(
                config.intermediate_size,
                config.hidden_size,
                bias=True,
                input_is_parallel=True,
                dtype=config.neuron_config.torch_dtype,
                pad=True,
                sequence_parallel_enabled=self.sequence_parallel_enabled,
                sequence_dimension=self.sequence_dimension,
                tensor_model_parallel_group=get_tp_group(config),
            )
        else:
            self.c_fc = nn.Linear(config.hidden_size, config.intermediate_size)
            self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACT2FN[config.activation_function]

    def forward(self, x):
        return self.c_proj(self.act(self.c_fc(x))), None


class NeuronGPT2Block(nn.Module):
    def __init__(self, config: GPT2InferenceConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.self_attn = NeuronGPT2Attention(config)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = NeuronGPT2MLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.LongTensor] = None,
        past_key_value: Optional[Tuple[torch.Tensor]] = None,
        **kwargs,
    ) -> Tuple[torch.FloatTensor, ...]:
        residual = hidden_states
        hidden_states = self.ln_1(hidden_states)
        hidden_states, present_key_value, cos_cache, sin_cache = self.self_attn(
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_value=past_key_value,
            **kwargs,
        )
        hidden_states = residual + hidden_states

        residual = hidden_states
        hidden_states = self.ln_2(hidden_states)
        hidden_states = residual + self.mlp(hidden_states)[0]

        return (hidden_states, present_key_value, cos_cache, sin_cache, None)


class NeuronGPT2Model(NeuronBaseModel):
    def setup_attr_for_model(self, config: GPT2InferenceConfig):
        self.on_device_sampling = config.neuron_config.on_device_sampling_config is not None
        self.tp_degree = config.neuron_config.tp_degree
        self.hidden_size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.max_batch_size = config.neuron_config.max_batch_size
        self.buckets = config.neuron_config.buckets

    def init_model(self, config: GPT2InferenceConfig):
        self.padding_idx = getattr(config, "pad_token_id", None)
        self.vocab_size = config.vocab_size
        self.embed_tokens = ParallelEmbedding(
            config.vocab_size,
            config.hidden_size,
            self.padding_idx,
            dtype=config.neuron_config.torch_dtype,
            shard_across_embedding=True,
            pad=True,
            tensor_model_parallel_group=get_tp_group(config),
        )
        self.wpe = nn.Embedding(config.n_positions, config.hidden_size)
        self.layers = nn.ModuleList([NeuronGPT2Block(config) for _ in range(config.n_layer)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.lm_head = ColumnParallelLinear(
            config.hidden_size,
            config.vocab_size,
            bias=False,
            pad=True,
            gather_output=not self.on_device_sampling,
            dtype=config.neuron_config.torch_dtype,
            tensor_model_parallel_group=get_tp_group(config),
        )

    def forward(
        self,
        input_ids,
        attention_mask,
        position_ids,
        seq_ids,
        sampling_params,
        prev_hidden=None,
        adapter_ids=None,
        accepted_indices=None,
        current_length=None,
        medusa_mask=None,
        scatter_index=None,
        slot_mapping=None,
        active_block_table=None,
        num_queries=None,
        computed_context_lens=None,
        tile_q_indices=None,
        tile_block_tables=None,
        tile_masks=None,
        inputs_embeds: Optional[torch.FloatTensor] = None,
        kv_cache: Optional[torch.Tensor] = None,
        active_mask=None,
        rotary_position_id=None,
        vision_embeddings=None,
        vision_mask=None,
    ):
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids) + self.wpe(position_ids)
        return super().forward(
            input_ids,
            attention_mask,
            position_ids,
            seq_ids,
            sampling_params,
            prev_hidden,
            adapter_ids,
            accepted_indices,
            current_length,
            medusa_mask,
            scatter_index,
            slot_mapping,
            active_block_table,
            num_queries,
            computed_context_lens,
            tile_q_indices,
            tile_block_tables,
            tile_masks,
            inputs_embeds,
            kv_cache,
            active_mask,
            rotary_position_id,
            vision_embeddings,
            vision_mask,
        )


class NeuronGPT2ForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronGPT2Model
    _STATE_DICT_MODEL_PREFIX = "transformer."

    @staticmethod
    def load_hf_model(model_path, **kwargs):
        return GPT2LMHeadModel.from_pretrained(model_path, **kwargs)

    @staticmethod
    def convert_hf_to_neuron_state_dict(state_dict: dict, config: InferenceConfig) -> dict:
        neuron_config = config.neuron_config
        new = {
            "embed_tokens.weight": state_dict["wte.weight"],
            "wpe.weight": state_dict["wpe.weight"],
            "norm.weight": state_dict["ln_f.weight"],
            "norm.bias": state_dict["ln_f.bias"],
        }
        for i in range(config.num_hidden_layers):
            hf, ours = f"h.{i}.", f"layers.{i}."
            for name in ("ln_1", "ln_2"):
                for kind in ("weight", "bias"):
                    new[f"{ours}{name}.{kind}"] = state_dict[f"{hf}{name}.{kind}"]
            # Conv1D keeps its weights as [in, out]
            qkv = state_dict[f"{hf}attn.c_attn.weight"].t()
            qkv_bias = state_dict[f"{hf}attn.c_attn.bias"]
            for j, name in enumerate(("q_proj", "k_proj", "v_proj")):
                rows = slice(j * config.hidden_size, (j + 1) * config.hidden_size)
                new[f"{ours}self_attn.qkv_proj.{name}.weight"] = qkv[rows].contiguous()
                new[f"{ours}self_attn.qkv_proj.{name}.bias"] = qkv_bias[rows].contiguous()
            for theirs, name in (
                ("attn.c_proj", "self_attn.o_proj.o_proj"),
                ("mlp.c_fc", "mlp.c_fc"),
                ("mlp.c_proj", "mlp.c_proj"),
            ):
                new[f"{ours}{name}.weight"] = state_dict[f"{hf}{theirs}.weight"].t().contiguous()
                new[f"{ours}{name}.bias"] = state_dict[f"{hf}{theirs}.bias"]
            new[f"{ours}self_attn.rank_util.rank"] = torch.arange(
                0, neuron_config.tp_degree, dtype=torch.int32
            )
        new["rank_util.rank"] = torch.arange(0, neuron_config.tp_degree, dtype=torch.int32)
        return new

    @staticmethod
    def update_state_dict_for_tied_weights(state_dict):
        state_dict["lm_head.weight"] = state_dict["embed_tokens.weight"].clone()

    @classmethod
    def get_config_cls(cls):
        return GPT2InferenceConfig

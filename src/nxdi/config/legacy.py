"""What each of NxDI's option names means here: supported, without effect, or refused."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch

from nxdi.config.keywords import changed_fields
from nxdi.errors import UnsupportedError

if TYPE_CHECKING:
    from nxdi.config.neuron import NeuronConfig


class Status(str, Enum):
    """How an option is treated."""

    SUPPORTED = "supported"
    NO_OP = "no-op"  # accepted in any value; it cannot change the result
    DEVICE = "device"  # tells the neuron backend how to compile; a no-op on the others
    REFUSED = "refused"  # only the default (or a value in `accepted`) is accepted


@dataclass(frozen=True)
class Option:
    """The treatment of one option name.

    `reason` says why it is a no-op or refused, `remedy` what to do instead, and `accepted` lists
    values other than the default that mean what is done anyway.
    """

    status: Status
    reason: str = ""
    remedy: str = "leave it out"
    accepted: tuple[Any, ...] = ()


def check_options(config: NeuronConfig) -> None:
    """Raise UnsupportedError if a refused option has a value that is not accepted."""
    for f in changed_fields(config):
        value, option = getattr(config, f.name), OPTIONS.get(f.name)
        if option is None or option.status is not Status.REFUSED or value in option.accepted:
            continue
        raise UnsupportedError(f"{f.name}={value!r} is refused: {option.reason}; {option.remedy}")


def no_op_options(config: NeuronConfig) -> list[tuple[str, Any, str]]:
    """(name, value, reason) of each option that was changed and has no effect here."""
    without_effect = {Status.NO_OP} | (set() if config.is_for_neuron else {Status.DEVICE})
    return [
        (f.name, getattr(config, f.name), OPTIONS[f.name].reason)
        for f in changed_fields(config)
        if f.name in OPTIONS and OPTIONS[f.name].status in without_effect
    ]


def kernel_options(config: NeuronConfig) -> dict[str, bool]:
    """The options that decide about kernels of a Neuron device; None decides nothing."""
    values = {name: getattr(config, name) for name in _KERNELS.split()}
    return {name: value for name, value in values.items() if value is not None}


_SUPPORTED = """
    backend on_cpu seq_len max_context_length max_length max_new_tokens allow_input_truncation
    padding_side batch_size max_batch_size ctx_batch_size tkg_batch_size kv_cache_batch_size
    enable_bucketing context_encoding_buckets token_generation_buckets prefix_buckets
    token_generation_batches torch_dtype overrides_torch_dtype output_logits
    on_device_sampling_config tp_degree sequence_parallel_enabled vocab_parallel
    is_continuous_batching is_block_kv_layout pa_num_blocks pa_block_size is_prefix_caching
    chunked_prefill_config windowed_context_encoding_size save_sharded_checkpoint skip_warmup
    kv_cache_memory_bytes kv_cache_quant kv_quant_config attn_cls world_size start_rank_id
    local_ranks_size async_mode quantized quantized_checkpoints_path quantization_type
    quantization_dtype modules_to_not_convert quantization_block_size quantization_block_axis
    quantization_scale_dtype strict_kernels activation_quantization_type quantize_clamp_bound
    speculation_length enable_fused_speculation enable_eagle_speculation is_eagle3 is_eagle_draft
    enable_eagle_draft_input_norm token_tree_config is_medusa medusa_speculation_length
    num_medusa_heads medusa_heads_path medusa_tree
    ep_dispatch_cc_option capacity_factor blockwise_matmul_config moe_tp_degree moe_ep_degree
    hybrid_sharding_config glu_type hidden_act_scaling_factor hidden_act_bias
    gate_clamp_upper_limit gate_clamp_lower_limit up_clamp_upper_limit up_clamp_lower_limit
    early_expert_affinity_modulation disable_normalize_top_k_affinities router_config
"""

_NO_OPS = {
    "it chooses a Neuron kernel, and a kernel computes what the model's own code computes": """
        strided_context_parallel_kernel_enabled qkv_cte_nki_kernel_fuse_rope
        qkv_kernel_nbsd_layout qkv_kernel_fuse_residual_add
        mlp_kernel_fuse_residual_add attn_tkg_builtin_kernel_enabled
        attn_block_tkg_nki_kernel_cache_update attn_block_tkg_nki_kernel_cascaded_attention
        attn_block_tkg_nki_kernel_use_online_softmax
        attn_block_tkg_nki_kernel_disable_gpsimd_sb2sb attn_block_cte_nki_kernel_enabled
        moe_fused_nki_kernel_enabled eagle_rolling_buffer_kernel_enabled
        shared_mlp_nki_kernel_enabled disable_argmax_kernel use_index_calc_kernel
    """,
    "it tunes the Neuron compiler or runtime": """
        enable_cte_modular_flow layer_boundary_markers seq_len_threshold_for_cc_tiling
        weights_to_skip_layout_optimization
    """,
    "it chooses between collectives with equal results": """
        weight_gather_seq_len_threshold disable_numeric_cc_token switch_cc
        shared_experts_sequence_parallel_enabled
    """,
    "it is a layout of the key cache in device memory": """
        k_cache_transposed disable_kv_cache_tiling
    """,
    "rows outside seq_ids and padding are never written to the cache": """
        kv_cache_padding_size apply_seq_ids_mask
    """,
    "each graph takes its own value from its bucket": """
        n_active_tokens n_positions bucket_n_active_tokens
    """,
    "each graph sets it, and context_encoding_buckets and token_generation_buckets choose": (
        "buckets"
    ),
    "the projections stay separate, with equal results": "fused_qkv fused_shared_experts",
    "it is a layout of weights in device memory": "transpose_shared_experts_weights",
    "padding never takes the place of a token with an expert": "moe_mask_padded_tokens",
    "it tells a Neuron kernel where the model's own query and key norms are": "pre_rope_rmsnorm",
    "the vocabulary is padded as sharding needs, and padded logits are never returned": """
        lm_head_pad lm_head_pad_alignment_size
    """,
}

_DEVICE = """
    target logical_neuron_cores logical_nc_config cc_pipeline_tiling_factor enable_spill_reload_dge
    dma_order_config scratchpad_page_size enable_output_completion_notifications
"""
_DEVICE_REASON = "it tells the Neuron compiler what the device is and how to compile for it"

# What `kernel_options` hands to the choice of kernels: True asks for one, False forbids it.
_KERNELS = """
    attn_kernel_enabled attn_tkg_nki_kernel_enabled attn_block_tkg_nki_kernel_enabled
    mlp_kernel_enabled mlp_tkg_nki_kernel_enabled qkv_kernel_enabled qkv_nki_kernel_enabled
    out_proj_kernel_enabled router_topk_nki_kernel_enabled expert_mlp_nki_kernel_enabled
"""
_KERNELS_REASON = "it chooses a Neuron kernel, which computes what the model's own code computes"

_REFUSALS: dict[tuple[str, str], str] = {
    (
        "a step verifies as many rows as decode takes",
        "leave it out and set tkg_batch_size",
    ): "spec_batch_size",
    ("this form of quantization is not part of this release", "leave it out"): """
        is_mxfp4_compute is_full_model_shuffled
        draft_model_modules_to_not_convert
        quantized_mlp_kernel_enabled rmsnorm_quantize_kernel_enabled
    """,
    ("LoRA serving is not part of this release", "merge the adapter into the checkpoint"): (
        "lora_config"
    ),
    ("this form of parallelism is not part of this release", "use tp_degree"): """
        cp_degree mlp_cp_degree attention_dp_degree pp_degree ep_degree flash_decoding_enabled
    """,
    ("experts without a gate are not part of this release", "leave it out"): "glu_mlp",
    ("vision models are not part of this release", "leave it out"): "enable_ve_data_parallel",
    (
        "compiled graphs return nothing from within",
        "use backend='eager' with capture_tensors and replace_tensors of "
        "nxdi.tools.accuracy.tensors",
    ): """
        tensor_capture_config tensor_replacement_config return_expert_index return_router_logits
    """,
    (
        "query and key norms are a part of the model",
        "give q_layernorm and k_layernorm to NeuronAttentionBase",
    ): "qk_layernorm",
    (
        "it expects norm weights folded into the next projection, and here norms apply them",
        "leave it out and load the checkpoint as published",
    ): "fused_rmsnorm_skip_gamma",
    (
        "sizes are padded only where sharding needs it",
        "leave it out: unpadded sizes give the same results",
    ): "padded_hidden_size padded_intermediate_size",
    (
        "reusing the weights of an earlier compile is not part of this release",
        "set save_sharded_checkpoint=False: weights are then sharded when the model is loaded",
    ): "skip_sharding",
    (
        "weights are cast to torch_dtype",
        "use cast_type='config' and the torch_dtype of the checkpoint",
    ): "cast_type",
}

_REFUSED_EXCEPT_FLOAT32 = {
    "rpl_reduce_dtype": "partial results are summed in float32",
    "attention_dtype": "attention and its cache are computed in float32",
}


def _make_table() -> dict[str, Option]:
    table = {name: Option(Status.SUPPORTED) for name in _SUPPORTED.split()}
    for reason, names in _NO_OPS.items():
        table |= {name: Option(Status.NO_OP, reason) for name in names.split()}
    table |= {name: Option(Status.DEVICE, _DEVICE_REASON) for name in _DEVICE.split()}
    table |= {name: Option(Status.DEVICE, _KERNELS_REASON) for name in _KERNELS.split()}
    for (reason, remedy), names in _REFUSALS.items():
        table |= {name: Option(Status.REFUSED, reason, remedy) for name in names.split()}
    for name, reason in _REFUSED_EXCEPT_FLOAT32.items():
        remedy = "leave it out or use torch.float32"
        table[name] = Option(Status.REFUSED, reason, remedy, accepted=(torch.float32,))
    return table


OPTIONS = _make_table()

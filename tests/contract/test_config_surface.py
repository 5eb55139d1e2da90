"""The frozen list of options and what each means. Adding or changing an option edits this list."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

import pytest
import torch

from nxdi.config import (
    OPTIONS,
    MoENeuronConfig,
    NeuronConfig,
    OnDeviceSamplingConfig,
    Status,
    no_op_options,
)
from nxdi.errors import UnsupportedError

OWN = {"backend", "kv_cache_memory_bytes", "medusa_heads_path", "strict_kernels"}

_SUPPORTED = """
    activation_quantization_type allow_input_truncation async_mode attn_cls backend batch_size
    chunked_prefill_config context_encoding_buckets ctx_batch_size enable_bucketing
    enable_eagle_draft_input_norm enable_eagle_speculation enable_fused_speculation
    is_eagle3 is_eagle_draft
    ep_dispatch_cc_option is_block_kv_layout is_continuous_batching is_medusa is_prefix_caching
    kv_cache_batch_size kv_cache_memory_bytes kv_cache_quant kv_quant_config local_ranks_size
    max_batch_size max_context_length max_length max_new_tokens medusa_heads_path
    medusa_speculation_length
    medusa_tree modules_to_not_convert num_medusa_heads on_cpu
    on_device_sampling_config output_logits overrides_torch_dtype pa_block_size pa_num_blocks
    padding_side prefix_buckets quantization_block_axis quantization_block_size
    quantization_dtype quantization_scale_dtype quantization_type quantize_clamp_bound quantized
    quantized_checkpoints_path save_sharded_checkpoint seq_len sequence_parallel_enabled
    skip_warmup speculation_length start_rank_id strict_kernels tkg_batch_size
    token_generation_batches
    token_generation_buckets token_tree_config
    torch_dtype tp_degree vocab_parallel windowed_context_encoding_size world_size
"""

_NO_OP = """
    apply_seq_ids_mask attn_block_cte_nki_kernel_enabled attn_block_tkg_nki_kernel_cache_update
    attn_block_tkg_nki_kernel_cascaded_attention attn_block_tkg_nki_kernel_disable_gpsimd_sb2sb
    attn_block_tkg_nki_kernel_use_online_softmax attn_tkg_builtin_kernel_enabled
    bucket_n_active_tokens buckets disable_argmax_kernel disable_kv_cache_tiling
    disable_numeric_cc_token eagle_rolling_buffer_kernel_enabled enable_cte_modular_flow
    fused_qkv k_cache_transposed kv_cache_padding_size
    layer_boundary_markers lm_head_pad lm_head_pad_alignment_size
    mlp_kernel_fuse_residual_add moe_fused_nki_kernel_enabled
    n_active_tokens n_positions pre_rope_rmsnorm
    qkv_cte_nki_kernel_fuse_rope qkv_kernel_fuse_residual_add
    qkv_kernel_nbsd_layout
    seq_len_threshold_for_cc_tiling shared_mlp_nki_kernel_enabled
    strided_context_parallel_kernel_enabled switch_cc weight_gather_seq_len_threshold
    weights_to_skip_layout_optimization
"""

_DEVICE = """
    attn_block_tkg_nki_kernel_enabled attn_kernel_enabled attn_tkg_nki_kernel_enabled
    cc_pipeline_tiling_factor dma_order_config enable_output_completion_notifications
    enable_spill_reload_dge expert_mlp_nki_kernel_enabled logical_nc_config logical_neuron_cores
    mlp_kernel_enabled
    mlp_tkg_nki_kernel_enabled out_proj_kernel_enabled qkv_kernel_enabled qkv_nki_kernel_enabled
    router_topk_nki_kernel_enabled scratchpad_page_size target
"""

_REFUSED = """
    attention_dp_degree attention_dtype cast_type cp_degree
    draft_model_modules_to_not_convert
    enable_ve_data_parallel ep_degree flash_decoding_enabled fused_rmsnorm_skip_gamma
    is_full_model_shuffled is_mxfp4_compute lora_config
    mlp_cp_degree padded_hidden_size
    padded_intermediate_size pp_degree qk_layernorm
    quantized_mlp_kernel_enabled rmsnorm_quantize_kernel_enabled rpl_reduce_dtype skip_sharding
    spec_batch_size tensor_capture_config tensor_replacement_config
"""

# Of a mixture of experts only.
_MOE_SUPPORTED = """
    blockwise_matmul_config capacity_factor disable_normalize_top_k_affinities
    early_expert_affinity_modulation gate_clamp_lower_limit gate_clamp_upper_limit glu_type
    hidden_act_bias hidden_act_scaling_factor hybrid_sharding_config moe_ep_degree moe_tp_degree
    router_config up_clamp_lower_limit up_clamp_upper_limit
"""

_MOE_NO_OP = """
    fused_shared_experts moe_mask_padded_tokens shared_experts_sequence_parallel_enabled
    transpose_shared_experts_weights use_index_calc_kernel
"""

_MOE_REFUSED = "glu_mlp return_expert_index return_router_logits"

MOE_SUPPORTED, MOE_NO_OP = _MOE_SUPPORTED.split(), _MOE_NO_OP.split()
MOE_REFUSED = _MOE_REFUSED.split()
MOE_NAMES = [*MOE_SUPPORTED, *MOE_NO_OP, *MOE_REFUSED]
SUPPORTED, NO_OP, REFUSED = _SUPPORTED.split(), _NO_OP.split(), _REFUSED.split()
DEVICE = _DEVICE.split()
NAMES = [*SUPPORTED, *NO_OP, *DEVICE, *REFUSED]
FIELDS = {f.name: f for f in fields(MoENeuronConfig)}


def test_all_of_nxdi_s_keywords_are_there_and_nothing_else() -> None:
    assert len(set(NAMES) - OWN) == 138
    assert len(NAMES) == len(set(NAMES))
    assert {f.name for f in fields(NeuronConfig)} == set(NAMES)
    assert set(OPTIONS) == {*NAMES, *MOE_NAMES}


def test_so_are_those_of_a_mixture_of_experts() -> None:
    """21, and two that NxDI's constructor names."""
    assert len(MOE_NAMES) == len(set(MOE_NAMES)) == 21 + 2
    assert set(FIELDS) == {*NAMES, *MOE_NAMES}


@pytest.mark.parametrize(
    ("status", "names"),
    [
        (Status.SUPPORTED, [*SUPPORTED, *MOE_SUPPORTED]),
        (Status.NO_OP, [*NO_OP, *MOE_NO_OP]),
        (Status.DEVICE, DEVICE),
        (Status.REFUSED, [*REFUSED, *MOE_REFUSED]),
    ],
)
def test_each_option_has_its_status(status: Status, names: list[str]) -> None:
    found = [name for name, option in OPTIONS.items() if option.status is status]
    assert sorted(found) == sorted(names)


@pytest.mark.parametrize("name", [*NO_OP, *MOE_NO_OP, *DEVICE, *REFUSED, *MOE_REFUSED])
def test_each_limit_says_why(name: str) -> None:
    assert OPTIONS[name].reason


def _other_value(f: Field[Any], default: Any) -> Any:
    """A value of the field's type that is not its default."""
    if f.name == "logical_neuron_cores":
        return 1  # another value has to agree with logical_nc_config
    if f.name == "cast_type":
        return "as-declared"
    kinds: dict[str, Any] = {
        "bool": default is not True,
        "int": default + 1 if isinstance(default, int) else 1,
        "float": 1.5,
        "str": "other",
        "torch.dtype": torch.bfloat16,
        "list[str]": ["lm_head"],
        "list[int]": [64, 128],
        "Any": {"key": 1},
    }
    return kinds[str(f.type).removesuffix(" | None")]


@pytest.mark.parametrize("name", [*REFUSED, *MOE_REFUSED])
def test_refused_options_raise(name: str) -> None:
    config_cls = MoENeuronConfig if name in MOE_NAMES else NeuronConfig
    default = getattr(config_cls(), name)
    assert getattr(config_cls(**{name: default}), name) == default
    with pytest.raises(UnsupportedError) as caught:
        config_cls(**{name: _other_value(FIELDS[name], default)})
    assert f"{name}=" in str(caught.value)
    assert OPTIONS[name].reason in str(caught.value)
    assert OPTIONS[name].remedy in str(caught.value)


@pytest.mark.parametrize("name", DEVICE)
def test_options_of_the_device_are_listed_on_other_backends(name: str) -> None:
    value = _other_value(FIELDS[name], getattr(NeuronConfig(), name))
    listed = (name, value, OPTIONS[name].reason)
    assert listed in no_op_options(NeuronConfig(**{name: value}))
    assert listed not in no_op_options(NeuronConfig(**{name: value}, backend="neuron"))


@pytest.mark.parametrize("name", [*NO_OP, *MOE_NO_OP])
def test_no_op_options_are_accepted_and_listed(name: str) -> None:
    config_cls = MoENeuronConfig if name in MOE_NAMES else NeuronConfig
    value = _other_value(FIELDS[name], getattr(config_cls(), name))
    config = config_cls(**{name: value})
    assert getattr(config, name) == value
    assert (name, value, OPTIONS[name].reason) in no_op_options(config)


def test_plain_defaults_are_nxdi_s() -> None:
    config = NeuronConfig()
    changed_by_a_platform = {"logical_nc_config": 1, "logical_neuron_cores": None}
    expected = changed_by_a_platform | {
        "batch_size": 1,
        "seq_len": 128,
        "padding_side": "right",
        "cast_type": "config",
        "attn_cls": "NeuronLlamaAttention",
        "weight_gather_seq_len_threshold": 32768,
        "quantization_type": "per_tensor_symmetric",
        "quantization_dtype": "int8",
        "quantization_scale_dtype": "f32",
        "quantize_clamp_bound": float("inf"),
        "attn_block_tkg_nki_kernel_use_online_softmax": True,
        "attn_kernel_enabled": None,
        "attn_tkg_nki_kernel_enabled": None,
        "attn_block_tkg_nki_kernel_enabled": None,
        "cc_pipeline_tiling_factor": 2,
        "seq_len_threshold_for_cc_tiling": 16384,
        "ep_dispatch_cc_option": "AR_AG",
        "lm_head_pad": False,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    booleans = {f.name for f in fields(config) if f.type == "bool"}
    on = {name for name in booleans if getattr(config, name)}
    assert on == {"attn_block_tkg_nki_kernel_use_online_softmax"}


def test_sampling_options_are_frozen() -> None:
    assert sorted(f.name for f in fields(OnDeviceSamplingConfig)) == [
        "deterministic",
        "do_sample",
        "dynamic",
        "global_topk",
        "on_device_sampling_config",
        "sampling_dp_degree",
        "temperature",
        "top_k",
        "top_k_kernel_enabled",
        "top_p",
    ]

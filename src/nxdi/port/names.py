"""What becomes of each name of NxD Inference and neuronx_distributed: the data of `nxdi port`.

Names are dotted paths below the import root, the same in both libraries.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from nxdi import absent


class Status(str, Enum):
    """What a port has to do about a name."""

    SUPPORTED = "supported"  # nothing
    CHANGED = "changed"  # works differently: read the note
    MISSING = "missing"  # take it out, as the note says


class Entry(NamedTuple):
    status: Status
    note: str = ""


# Module -> the names it has here.
SUPPORTED = {
    "models.application_base": "NeuronApplicationBase",
    "models.config": "FusedSpecNeuronConfig HybridShardingConfig InferenceConfig MoENeuronConfig"
    " NeuronConfig OnDeviceSamplingConfig to_torch_dtype",
    "models.dbrx.modeling_dbrx": "DbrxInferenceConfig NeuronDbrxForCausalLM",
    "models.deepseek.modeling_deepseek": "DeepseekV3InferenceConfig NeuronDeepseekV3ForCausalLM",
    "models.gemma3.modeling_gemma3": "Gemma3InferenceConfig NeuronGemma3ForCausalLM",
    "models.gpt_oss.modeling_gpt_oss": "GptOssInferenceConfig NeuronGptOssForCausalLM",
    "models.llama.modeling_llama": "Llama3RotaryEmbedding LlamaInferenceConfig NeuronLlamaAttention"
    " NeuronLlamaDecoderLayer NeuronLlamaForCausalLM NeuronLlamaMLP NeuronLlamaModel"
    " get_rmsnorm_cls",
    "models.mistral.modeling_mistral": "MistralInferenceConfig NeuronMistralForCausalLM",
    "models.mixtral.modeling_mixtral": "MixtralInferenceConfig NeuronMixtralForCausalLM",
    "models.model_base": "NeuronBaseForCausalLM NeuronBaseModel",
    "models.qwen2.modeling_qwen2": "NeuronQwen2ForCausalLM Qwen2InferenceConfig",
    "models.qwen3.modeling_qwen3": "NeuronQwen3ForCausalLM Qwen3InferenceConfig",
    "models.qwen3_moe.modeling_qwen3_moe": "NeuronQwen3MoeForCausalLM Qwen3MoeInferenceConfig",
    "modules.attention.attention_base": "NeuronAttentionBase",
    "modules.attention.utils": "RotaryEmbedding apply_rotary_polar_compatible apply_rotary_pos_emb"
    " manual_softmax move_heads_front precompute_freqs_cis repeat_kv rotate_half",
    "modules.custom_calls": "CustomRMSNorm",
    "modules.flashdecode.utils": "calculate_num_cores_per_group",
    "modules.generation.sampling": "prepare_sampling_params",
    "modules.moe_v2": "initialize_moe_module",
    "parallel_layers": "BaseParallelLinear ColumnParallelLinear ParallelEmbedding"
    " RowParallelLinear SPMDRank",
    "parallel_layers.layers": "BaseParallelLinear ColumnParallelLinear ParallelEmbedding"
    " RowParallelLinear SPMDRank",
    "parallel_layers.mappings": "_gather_along_dim gather_from_sequence_parallel_region"
    " gather_from_tensor_model_parallel_region_with_dim reduce_from_tensor_model_parallel_region"
    " reduce_scatter_to_sequence_parallel_region scatter_to_sequence_parallel_region",
    "parallel_layers.parallel_state": "destroy_model_parallel get_tensor_model_parallel_group"
    " get_tensor_model_parallel_rank get_tensor_model_parallel_size initialize_model_parallel"
    " model_parallel_is_initialized",
    "parallel_layers.utils": "divide get_padding_length set_tensor_model_parallel_attributes",
    "utils": "cpu_mode",
    "utils.accuracy": "LogitMatchingValidationError check_accuracy check_accuracy_logits_v2"
    " generate_expected_logits",
    "utils.benchmark": "benchmark_sampling",
    "utils.distributed": "get_tp_group",
    "utils.hf_adapter": "HuggingFaceGenerationAdapter load_pretrained_config",
}

# Supported, with a difference that a port may notice.
CHANGED = {
    "utils.cpu_mode": "always True: models are made of plain torch modules, also on a device",
    "modules.moe_v2.initialize_moe_module": "init_tkg_module changes nothing; the result is a tuple"
    " of one, whatever return_router_logits and return_expert_index say (both are refused)",
    "utils.benchmark.benchmark_sampling": "throughput counts generated tokens only",
}

# Modules that a port may import whole: these, and the packages they are in.
MODULES = {
    ".".join(parts[:end])
    for parts in (module.split(".") for module in SUPPORTED)
    for end in range(len(parts) + 1)
}

# Packages of the Neuron SDK that model sources import.
SDK = {
    "libneuronxla": "the compiler's interface",
    "neuronxcc": "device kernels",
    "nki": "device kernels",
    "nkilib": "device kernels",
    "torch_neuronx": "the device's torch",
    "torch_xla": "the device's torch",
}

# Classes whose subclasses make a port.
BASE_CLASSES = {
    f"{module}.{name}"
    for module, names in SUPPORTED.items()
    for name in names.split()
    if name.endswith(("Attention", "Base", "Config", "ForCausalLM", "Model"))
}

_GRAPHS = "graphs are planned from the config, one per phase and bucket; nothing calls it"
_MASKS = "masks are made from positions; nothing calls it"
_ATTEND = "attention is one path for all phases; override prep_qkv_tensors or forward instead"
_SPECULATION = "speculation goes by the config's speculation_length; nothing calls it"

# Methods of NxDI's base classes that are never called here: overriding them does nothing.
NOT_HOOKS = {
    "_copy_past_key_values": "caches are updated by the graph; nothing calls it",
    "_create_context_attn_mask": _MASKS,
    "_create_simple_attn_mask": _MASKS,
    "_get_model_outputs": "inputs are named, not positional; override forward",
    "_sample_on_device": "the sampler is made from on_device_sampling_config; nothing calls it",
    "attention_context_encode": _ATTEND,
    "attention_tokengen": _ATTEND,
    "checkpoint_loader_fn": "override load_hf_model or convert_hf_to_neuron_state_dict",
    "compute_for_flash_decoding": _ATTEND,
    "compute_for_token_gen": _ATTEND,
    "create_attn_mask": _MASKS,
    "enable_context_encoding": _GRAPHS,
    "enable_eagle_speculation": _SPECULATION,
    "enable_fused_spec": _SPECULATION,
    "enable_medusa_speculation": _SPECULATION,
    "enable_speculation": _SPECULATION,
    "enable_token_generation": _GRAPHS,
    "encode_vision_to_input": "models that take images are not supported; nothing calls it",
    "get_flash_attention_strategy": "kernels are chosen by the library; nothing calls it",
    "get_model_wrapper_cls": _GRAPHS,
    "get_required_kwargs": "extra inputs cannot be declared this way; nothing calls it",
    "init_gqa_properties": "the constructor keywords say all there is; nothing calls it",
    "perform_prefill": _ATTEND,
    "perform_prefill_windowed_attn": _ATTEND,
    "scaled_qk": _ATTEND,
}

# Methods of our base classes that NxDI's do not have: a method of that name replaces ours.
OWN_METHODS = (
    "build call_layer embed head last_hidden logits merge_and_project outputs split_heads step"
)
_OWN = "nxdi calls a method of this name itself; rename it unless it is to replace that one"


def resolve_method(name: str) -> Entry | None:
    """What becomes of a method that a subclass of NxDI's bases defines; None: nothing special."""
    if name in NOT_HOOKS:
        return Entry(Status.MISSING, NOT_HOOKS[name])
    return Entry(Status.CHANGED, _OWN) if name in OWN_METHODS.split() else None


def resolve(path: str) -> tuple[str, Entry | None]:
    """The module, or the first name below one, that a dotted path leads to, and what becomes of it.

    What hangs on a class or function (`models.config.NeuronConfig.load`) is cut off. None: it is
    not listed.
    """
    why = absent.reason(path)
    if why is not None:
        return path, Entry(Status.MISSING, why)
    parts = path.split(".") if path else []
    depth = next(end for end in range(len(parts), -1, -1) if ".".join(parts[:end]) in MODULES)
    module, below = ".".join(parts[:depth]), parts[depth:]
    if not below:
        return module, Entry(Status.SUPPORTED)
    name = ".".join(parts[: depth + 1])
    if name in CHANGED:
        return name, Entry(Status.CHANGED, CHANGED[name])
    if below == ["*"]:
        return name, Entry(Status.CHANGED, "import the names that you use, to have each checked")
    is_here = below[0] in SUPPORTED.get(module, "").split()
    return name, Entry(Status.SUPPORTED) if is_here else None

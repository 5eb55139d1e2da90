"""Names of NxD Inference that nxdi does not have: importing one fails and says what to do instead.

`ABSENT` is the data, for the imports below and for `nxdi port`. A name that is neither here nor in
nxdi is a typing error, and gets Python's own message.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

GUIDE = "docs/port-from-nxdi.md"

_CACHE = (
    "caches are made and updated by the library: attention appends through `ctx`, and "
    "NeuronAttentionBase(sliding_window=...) chooses the layout"
)
_CONTEXT_PARALLEL = (
    "attention is never split over the sequence (cp_degree is 1); take the branch for cp_degree=1"
)
_DEVICE = "tied to the Neuron SDK; write it in torch, the graph compiler does the rest"
_EXPERTS = (
    "make the mixture as a whole, with nxdi.modules.moe_v2.initialize_moe_module, or with make_moe "
    "of nxdi.modules.moe for another router (docs/moe.md)"
)
_GQA = (
    "NeuronAttentionBase makes its projections itself, heads padded or replicated as tp_degree "
    "needs; give it qkv_bias, o_bias, and override prep_qkv_tensors"
)
_PLAN = (
    "one graph per phase and bucket, planned from the config; nothing wraps a model to give it "
    "inputs"
)
_TRACE = "model.compile(path) and model.load(path) trace and load all graphs"
_TRAINING = "training is not part of nxdi"
_VISION = "models that take images are not supported"


def _planned(what: str) -> str:
    return f"{what}: not in this version, planned for a later one"


# Below `nxdi.`: a module (with everything in it) or one name of a module -> what to do instead.
ABSENT = {
    # models
    "models.config.MultimodalVisionNeuronConfig": _VISION,
    "models.config.TensorCaptureConfig": "use capture_tensors of nxdi.tools.accuracy.tensors",
    "models.config.TensorReplacementConfig": "use replace_tensors of nxdi.tools.accuracy.tensors",
    "models.deepseek.rope_util": "use rope_from_config of nxdi.modules.rope",
    "models.encoder_base": "only decoders are supported",
    "models.image_to_text_model_base": _VISION,
    "models.image_to_text_model_wrapper": _VISION,
    "models.layer_boundary_marker": "not needed: layers are compiled as pieces without marks; "
    "drop the wrappers",
    "models.llama.modeling_llama.convert_state_dict_to_fused_qkv": "not needed: Wqkv weights are "
    "read as they are",
    "models.model_base.mask_padded_logits": "not needed: logits are cut to vocab_size before they "
    "leave the graph",
    "models.model_wrapper": _PLAN,
    # modules
    "modules.async_execution": "every step is synchronous",
    "modules.attention.attention_base.FlashAttentionStrategy": "kernels are chosen by the library "
    "when a graph is traced; drop the choice",
    "modules.attention.attention_process_groups": _CONTEXT_PARALLEL,
    "modules.attention.gqa": _GQA,
    "modules.attention.utils.order_strided_tensor": _CONTEXT_PARALLEL,
    "modules.attention.utils.preprocess_quantized_linear_layer": _planned("quantization"),
    "modules.attention.utils.transpose_parallel_linear_layer": "weights keep their layout; drop "
    "the call",
    "modules.autobucketing": _PLAN,
    "modules.checkpoint": "checkpoints are read by the library; override load_hf_model",
    "modules.chunked_prefill": _planned("chunked prefill"),
    "modules.eagle": _planned("speculation"),
    "modules.generation.sampling.Sampler": "the graph samples as on_device_sampling_config says",
    "modules.generation.seq_parallel_logits_slice": "the last token is taken by the base class",
    "modules.kvcache.block_kv_cache_manager": _CACHE,
    "modules.kvcache.data_parallel_kv_cache_manager": _CACHE,
    "modules.kvcache.gpt_oss_kv_cache_manager": _CACHE,
    "modules.kvcache.kv_cache_manager": _CACHE,
    "modules.kvcache.multimodal_kv_cache_manager": _CACHE,
    "modules.kvcache.utils": _CACHE,
    "modules.lora": _TRAINING,
    "modules.lora_serving": _planned("LoRA"),
    "modules.moe.expert_mlps": _EXPERTS,
    "modules.moe.expert_mlps_v2": _EXPERTS,
    "modules.moe.model": _EXPERTS,
    "modules.moe.moe_configs": "RouterConfig and BlockwiseMatmulConfig are in nxdi.models.config; "
    "the rest is read from the model's config",
    "modules.moe.moe_process_group": "groups follow from moe_tp_degree, moe_ep_degree and "
    "hybrid_sharding_config",
    "modules.moe.routing": _EXPERTS,
    "modules.moe.shared_experts": _EXPERTS,
    "modules.qkv_linear": _GQA,
    # neuronx_distributed
    "kernels.flash_attn": _DEVICE,
    "lightning": _TRAINING,
    "operators": _DEVICE,
    "optimizer": _TRAINING,
    "parallel_layers.checkpointing": _TRAINING,
    "parallel_layers.grads": _TRAINING,
    "parallel_layers.loss_functions": _TRAINING,
    "parallel_layers.pad": "heads are padded or replicated by the library, weights included",
    "parallel_layers.random": _TRAINING,
    "pipeline": _TRAINING,
    "quantization": _planned("quantization"),
    "trace": _TRACE,
    "trainer": _TRAINING,
    "utils.model_utils": _TRACE,
    # other
    "experimental": "write the model over nxdi.models.model_base (docs/add-a-model.md)",
    "utils.accuracy.check_accuracy_logits": "use check_accuracy_logits_v2, or `nxdi check`",
    "utils.constants": "nxdi.register(architecture, cls) makes a model known",
    "utils.debug_utils": "run with backend='eager' and set a breakpoint",
    "utils.exceptions": "LogitMatchingValidationError is in nxdi.utils.accuracy",
    "utils.random": "use torch.manual_seed",
    "utils.runtime_env": _DEVICE,
}


def reason(name: str) -> str | None:
    """Why nxdi lacks `name` (a path below `nxdi`) or the module it is in; None if not listed."""
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next((ABSENT[prefix] for prefix in prefixes if prefix in ABSENT), None)


def _refuse(name: str) -> None:
    """Raises: ImportError if `nxdi.<name>` is listed."""
    why = reason(name)
    if why is not None:
        raise ImportError(f"nxdi.{name} does not exist: {why}. See {GUIDE}")


class _AbsentModules:
    """Asked by Python when no module of that name was found."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        root, _, name = fullname.partition(".")
        if root == "nxdi":
            _refuse(name)


def explain_absent_modules() -> None:
    """From now on, importing a listed module below `nxdi` says what to do instead."""
    if _AbsentModules not in sys.meta_path:
        sys.meta_path.append(_AbsentModules)


def explain_absent_names(module_name: str) -> None:
    """Make `from <module_name> import X` say what to do instead where X is listed.

    A module's `__getattr__` is set from here and not in its source, so that type checkers still
    know which names the module has.
    """
    below_root = module_name.partition(".")[2]

    def __getattr__(name: str) -> object:
        _refuse(f"{below_root}.{name}")
        raise AttributeError(f"module {module_name!r} has no attribute {name!r}")

    vars(sys.modules[module_name])["__getattr__"] = __getattr__

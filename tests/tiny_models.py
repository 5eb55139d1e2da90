"""Tiny random Hugging Face models, and the nxdi models that serve them.

Every test may write `from tiny_models import ...`: pyproject.toml puts `tests/` on pytest's path,
and ruff sorts these helpers as first-party because `src` there names the same folder.

Weights are drawn wide (1.6 / sqrt(fan_in)), norms and biases away from neutral, embeddings untied.
With the usual initialisation a tiny model repeats one token whatever its positions say, and so
hides errors.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    DbrxConfig,
    DbrxForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Glm4Config,
    Glm4ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from nxdi.config import FusedSpecNeuronConfig, InferenceConfig, load_pretrained_config
from nxdi.models.application_base import NeuronApplicationBase
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.registry import class_for_folder
from nxdi.types import Phase

VOCAB_SIZE = 97

# Compiling takes seconds for each distinct piece. Tests that compile a model do it in these shapes
# and with the fixture `two_threads`, and so share the pieces through the cache.
COMPILED: dict[str, Any] = {
    "backend": "cpu",
    "batch_size": 3,
    "seq_len": 128,
    "max_context_length": 32,
    "enable_bucketing": True,
    "context_encoding_buckets": [32],
    "token_generation_buckets": [128],
}

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    # Generation ends by length only, so that runs have a known number of tokens.
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.4,
    "residual_multiplier": 0.6,
    "logits_scaling": 1.5,
}
# Caps low enough to bend the scores and logits that tiny models have.
_GEMMA2: dict[str, Any] = {
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": 4.0,
    "final_logit_softcapping": 12.0,
    "sliding_window": 24,
}
_GEMMA3: dict[str, Any] = {
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_local_base_freq": 100.0,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
}
_GPT2: dict[str, Any] = {"n_inner": 112, "n_positions": 2048}
# Windows, and after every second of them a layer that sees everything and knows no positions.
_COHERE2: dict[str, Any] = {
    "num_hidden_layers": 3,
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "logit_scale": 0.4,
}
_MIXTRAL: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
# One layer of each kind.
_QWEN3_MOE: dict[str, Any] = {
    "head_dim": 24,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "norm_topk_prob": True,
    "mlp_only_layers": [0],
}
_OLMOE: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 3, "clip_qkv": 1.0}
_DBRX: dict[str, Any] = {
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 1.0, "rope_theta": 10000.0},
    "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
}
# The sizes of DBRX's experts follow its own names only.
_DBRX_NAMES = {
    "hidden_size": "d_model",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "max_position_embeddings": "max_seq_len",
}
# As published, but that the clamp of 7 is lowered until it is felt.
_GPT_OSS: dict[str, Any] = {
    "head_dim": 16,
    "sliding_window": 24,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "swiglu_limit": 1.5,
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 64,
        "rope_theta": 1000.0,
    },
}
# One dense layer, then one whose experts are chosen from two of four groups.
_DEEPSEEK: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 40,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 2,
    "moe_intermediate_size": 24,
    "routed_scaling_factor": 1.5,
    "rope_theta": 10000.0,
}
# Chunks whose edges lie between the bucket edges, and queries that grow every seven tokens.
_LLAMA4: dict[str, Any] = {
    "head_dim": 16,
    "intermediate_size_mlp": 112,
    "moe_layers": [],
    "no_rope_layers": [1, 0],
    "attention_chunk_size": 20,
    "floor_scale": 7,
    "attn_scale": 0.3,
}
_FAMILIES: dict[str, tuple[type[Any], type[PreTrainedModel], dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama4": (Llama4TextConfig, Llama4ForCausalLM, _LLAMA4),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 24}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 24}),
    "granite": (GraniteConfig, GraniteForCausalLM, _MULTIPLIERS),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM, {}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, _GEMMA2),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, _GEMMA3),
    "phi3": (Phi3Config, Phi3ForCausalLM, {}),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM, {"no_rope_layers": [1, 0]}),
    "gpt2": (GPT2Config, GPT2LMHeadModel, _GPT2),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, {}),
    "cohere2": (Cohere2Config, Cohere2ForCausalLM, _COHERE2),
    "glm4": (Glm4Config, Glm4ForCausalLM, {"head_dim": 16}),
    "mixtral": (MixtralConfig, MixtralForCausalLM, _MIXTRAL),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, _QWEN3_MOE),
    "olmoe": (OlmoeConfig, OlmoeForCausalLM, _OLMOE),
    "dbrx": (DbrxConfig, DbrxForCausalLM, _DBRX),
    "deepseek": (DeepseekV3Config, DeepseekV3ForCausalLM, _DEEPSEEK),
    "gpt_oss": (GptOssConfig, GptOssForCausalLM, _GPT_OSS),
}
FAMILIES = tuple(_FAMILIES)
# Multiplied again in the model: drawn as wide as the others, a tied embedding repeats its input.
_SCALING_EMBEDDINGS = ("gemma2", "gemma3")


def tiny_hf_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A float32 Hugging Face model of 2 layers in eval mode; `overrides` go to its config."""
    config_cls, model_cls, particular = _FAMILIES[family]
    names = _DBRX_NAMES if family == "dbrx" else {}
    attributes = {**_SHAPE, **particular, **overrides}
    config = config_cls(**{names.get(name, name): value for name, value in attributes.items()})
    model = drawn_wide(model_cls(config), seed)
    if family in _SCALING_EMBEDDINGS:
        model.get_input_embeddings().weight.data /= model.config.hidden_size**0.5
    return model


def drawn_wide(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """A float32 model with all its weights drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.float().eval().named_parameters():
            parameter.copy_(_draw(name, parameter, generator))
        for name, buffer in model.named_buffers():
            # Trained, but not by gradients. Below zero, transformers 4 and 5 choose otherwise.
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(_draw(name, buffer, generator).abs())
    return model


def _draw(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if name.endswith("bias"):
        return 0.3 * noise
    if parameter.dim() == 1:
        return 1 + 0.1 * noise
    # GPT-2 stores its projections as [input, output].
    fan_in = parameter.shape[0 if ".c_" in name else -1]
    return noise * (1.6 / fan_in**0.5)


def near(model: PreTrainedModel, noise: float = 0.15, seed: int = 0) -> PreTrainedModel:
    """A copy that often says the same: a draft model whose proposals are kept now and then."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter += noise * parameter.std(correction=0) * drawn
    return other


def save_tiny(model: PreTrainedModel, folder: Path) -> Path:
    """Write a model as a Hugging Face folder (config.json, model.safetensors)."""
    model.save_pretrained(folder)
    return folder


def make_app(folder: Path, **options: Any) -> NeuronBaseForCausalLM:
    """The nxdi model of a Hugging Face folder, neither compiled nor loaded.

    `options` are NeuronConfig keywords; the backend is eager unless they say otherwise.
    """
    return class_for_folder(folder)(folder, make_config(folder, **options))


def make_config(folder: Path, **options: Any) -> InferenceConfig:
    """The config of `make_app`."""
    config_cls = class_for_folder(folder).get_config_cls()
    options = {"backend": "eager", "torch_dtype": torch.float32, **options}
    neuron_config = config_cls.get_neuron_config_cls()(**options)
    return config_cls(neuron_config, load_config=load_pretrained_config(folder))


def make_fused(folder: Path, draft: Path, **options: Any) -> NeuronBaseForCausalLM:
    """`make_app` with a draft model in the graphs; `draft_options` are keywords of its own."""
    own = options.pop("draft_options", {})
    fused: dict[str, Any] = {
        "enable_fused_speculation": True,
        "speculation_length": 4,
        "on_device_sampling_config": {},
    }
    target_cls, draft_cls = class_for_folder(folder), class_for_folder(draft)
    config = make_config(folder, **{**fused, **options})
    shared = {"backend": config.neuron_config.backend, "tp_degree": config.neuron_config.tp_degree}
    config.fused_spec_config = FusedSpecNeuronConfig(
        target_cls._model_cls, make_config(draft, **{**shared, **own}), draft, draft_cls
    )
    return target_cls(folder, config)


def loaded(app: NeuronBaseForCausalLM, artifact: Path) -> NeuronBaseForCausalLM:
    """A model, compiled to `artifact` and loaded."""
    app.compile(artifact, progress=False)
    app.load(artifact)
    return app


def load_app(folder: Path, **options: Any) -> NeuronBaseForCausalLM:
    """`make_app`, compiled to `folder/artifact` and loaded."""
    return loaded(make_app(folder, **options), folder / "artifact")


def load_fused(folder: Path, draft: Path, **options: Any) -> NeuronBaseForCausalLM:
    """`make_fused`, compiled to `folder/fused` and loaded."""
    return loaded(make_fused(folder, draft, **options), folder / "fused")


def planned_bytes(app: NeuronApplicationBase) -> int:
    """Weights and caches of all ranks."""
    program = app.program()
    with torch.device("meta"):
        caches = program.make_caches(program.build(Phase.DECODE))
    ranks = app.rank_weights(tuple(range(app.num_ranks)))
    weights = sum(tensor.nbytes for rank in ranks for tensor in rank.values())
    return weights + len(ranks) * sum(cache.nbytes for cache in caches)

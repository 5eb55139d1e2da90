"""The one table of what the golden tests cover; README's support table is made from it.

The tests take their cases from here, so a cell of README's table says yes where a test runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A tiny model: a family, attributes of its Hugging Face config, and what they show.

    seed: of weights and prompts; one with which the reference is varied and decisive.
    dtype: of the stored weights; the reference computes in float32 on the rounded weights.
    alone: transformers' answer depends on the batch and on its cache, so each prompt is continued
        on its own and without a cache.
    """

    name: str
    family: str
    shows: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    dtype: str = "float32"
    alone: bool = False


def _heads(num_heads: int, num_kv_heads: int, head_dim: int, hidden_size: int) -> dict[str, int]:
    return {
        "hidden_size": hidden_size,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
    }


_LINEAR_ROPE = {"rope_type": "linear", "factor": 3.0}
_LLAMA3_ROPE = {  # with head_dim 16 some waves are kept, some are stretched, and one lies between
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LLAMA4_PLAIN = {
    "num_hidden_layers": 3,
    "no_rope_layers": [1, 0, 1],
    "attention_chunk_size": 32,
    "use_qk_norm": False,
    "attn_temperature_tuning": False,
    "attention_bias": True,
    "tie_word_embeddings": True,
    # As published: no wave lies between those that are kept and those that are stretched.
    "rope_scaling": {**_LLAMA3_ROPE, "high_freq_factor": 1.0},
}
_BIASES = {"attention_bias": True, "mlp_bias": True}
_SOME_WINDOWS = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
_NOPE_WINDOWS = {
    "num_hidden_layers": 3,
    "no_rope_layers": [1, 0, 1],
    "use_sliding_window": True,
    "sliding_window": 24,
}
_PHI3_LONG = {
    "original_max_position_embeddings": 32,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
        "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    },
}
_PHI4_MINI = {
    "original_max_position_embeddings": 32,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    },
    "sliding_window": 24,
    "tie_word_embeddings": True,
}
_GEMMA2_TIED = {"tie_word_embeddings": True, "hidden_size": 72, "final_logit_softcapping": 1.0}
_UNCAPPED = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window": 80,
}

_QWEN3_MOE_PLAIN = {
    "norm_topk_prob": False,
    "mlp_only_layers": [],
    "decoder_sparse_step": 2,
    "num_experts_per_tok": 1,
}
_DEEPSEEK_YARN = {
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 64.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 0.8,
        "mscale_all_dim": 1.2,
        "original_max_position_embeddings": 32,
    }
}
# As Moonlight has it: queries without a latent, one group.
_DEEPSEEK_PLAIN = {
    "q_lora_rank": None,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": False,
    "rope_interleave": False,
    "attention_bias": True,
    "tie_word_embeddings": True,
}
_OLMOE_TIED = {"norm_topk_prob": True, "clip_qkv": None, "tie_word_embeddings": True}

FAMILIES = {
    "llama": "Llama 1 to 3.3",
    "mistral": "Mistral",
    "qwen2": "Qwen2, Qwen2.5",
    "llama4": "Llama 4, text only",
    "smollm3": "SmolLM3",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX, Pythia",
    "cohere2": "Command R7B, Command A",
    "glm4": "GLM-4-0414",
    "qwen3": "Qwen3",
    "granite": "Granite 3",
    "olmo2": "OLMo 2",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3, text only",
    "phi3": "Phi-3, Phi-3.5, Phi-4",
    "mixtral": "Mixtral",
    "qwen3_moe": "Qwen3-MoE",
    "olmoe": "OLMoE",
    "dbrx": "DBRX",
    "deepseek": "DeepSeek V3, R1",
    "gpt_oss": "GPT-OSS",
}
VARIANTS = (
    Variant("llama", "llama", "grouped-query attention"),
    Variant("llama-mha", "llama", "as many key/value heads as heads", _heads(4, 4, 16, 64)),
    Variant("llama-mqa", "llama", "one key/value head", _heads(4, 1, 16, 64), seed=1),
    Variant(
        "llama-7-heads",
        "llama",
        "head counts that do not divide (7/7, 9/3, 71/1)",
        _heads(7, 7, 8, 56),
    ),
    Variant("llama-9-heads", "llama", "", _heads(9, 3, 8, 72)),
    Variant("llama-71-heads", "llama", "", _heads(71, 1, 4, 142)),
    Variant("llama-head-dim", "llama", "`head_dim` of its own", _heads(4, 2, 24, 64)),
    Variant(
        "llama-sizes", "llama", "odd sizes", {**_heads(2, 2, 16, 62), "intermediate_size": 109}
    ),
    Variant("llama-tied", "llama", "tied embeddings", {"tie_word_embeddings": True}),
    Variant("llama-biases", "llama", "biases", _BIASES),
    Variant("llama-linear", "llama", "linear RoPE scaling", {"rope_scaling": _LINEAR_ROPE}),
    Variant(
        "llama-llama3", "llama", "Llama 3 RoPE scaling", {"rope_scaling": _LLAMA3_ROPE}, seed=1
    ),
    Variant("llama-bf16", "llama", "bfloat16 weights", dtype="bfloat16"),
    Variant("mistral", "mistral", "windows shorter than the prompt"),
    Variant("mistral-wide", "mistral", "or longer", {"sliding_window": 80}),
    Variant("mistral-full", "mistral", "or none", {"sliding_window": None}),
    Variant("qwen2", "qwen2", "biases on q, k and v"),
    Variant("qwen2-windows", "qwen2", "windows on some layers", _SOME_WINDOWS),
    Variant("qwen2-tied", "qwen2", "tied embeddings", {"tie_word_embeddings": True}, seed=1),
    Variant("llama4", "llama4", "chunks, and layers without positions", alone=True),
    Variant(
        "llama4-experts",
        "llama4",
        "experts beside a shared one",
        {"moe_layers": [1], "num_local_experts": 4, "num_experts_per_tok": 1},
        seed=1,
        alone=True,
    ),
    Variant(
        "llama4-plain",
        "llama4",
        "no norms on heads, no tuned temperature, biases, RoPE scaling, tied embeddings",
        _LLAMA4_PLAIN,
        alone=True,
    ),
    Variant("smollm3", "smollm3", "layers without positions", seed=1),
    Variant("smollm3-windows", "smollm3", "with windows", _NOPE_WINDOWS),
    Variant("smollm3-tied", "smollm3", "tied embeddings", {"tie_word_embeddings": True}),
    Variant("gpt2", "gpt2", "learned positions", seed=11),
    Variant("gpt2-tied", "gpt2", "tied embeddings", {"tie_word_embeddings": True}, seed=5),
    Variant(
        "gpt2-scales",
        "gpt2",
        "scores scaled by layer",
        {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False, "n_inner": None},
    ),
    Variant(
        "gpt2-7-heads",
        "gpt2",
        "head counts that do not divide (7)",
        {"hidden_size": 56, "num_attention_heads": 7},
        seed=2,
    ),
    Variant("gpt_neox", "gpt_neox", "attention beside the MLP", seed=24),
    Variant(
        "gpt_neox-sequential",
        "gpt_neox",
        "or before it",
        {"use_parallel_residual": False, "rotary_pct": 1.0},
        seed=7,
    ),
    Variant(
        "gpt_neox-plain",
        "gpt_neox",
        "no attention biases",
        {"attention_bias": False, "hidden_act": "gelu_fast", "rotary_pct": 1.0},
        seed=11,
    ),
    Variant("cohere2", "cohere2", "windows, and no positions in the other layers", seed=1),
    Variant("cohere2-tied", "cohere2", "tied embeddings", {"tie_word_embeddings": True}, seed=2),
    Variant("cohere2-biases", "cohere2", "biases", {"attention_bias": True}),
    Variant("glm4", "glm4", "half of each head turned, biases on q, k and v", seed=1),
    Variant(
        "glm4-whole",
        "glm4",
        "all of it turned",
        {"partial_rotary_factor": 1.0, "attention_bias": False},
    ),
    Variant("qwen3", "qwen3", "norms on heads, `head_dim` of its own"),
    Variant(
        "qwen3-windows",
        "qwen3",
        "biases, windows on some layers",
        {**_SOME_WINDOWS, "attention_bias": True},
    ),
    Variant("qwen3-tied", "qwen3", "tied embeddings", {"tie_word_embeddings": True}, seed=6),
    Variant("granite", "granite", "four multipliers"),
    Variant(
        "granite-tied",
        "granite",
        "biases, tied embeddings",
        {**_BIASES, "tie_word_embeddings": True},
        seed=18,
    ),
    Variant("olmo2", "olmo2", "norms over all heads", seed=1),
    Variant("olmo2-9-heads", "olmo2", "head counts that do not divide (9/3)", _heads(9, 3, 8, 72)),
    Variant("olmo2-mqa", "olmo2", "one key/value head", _heads(4, 1, 16, 64), seed=2),
    Variant("gemma2", "gemma2", "capped scores and logits, windows on every other layer"),
    Variant("gemma2-uncapped", "gemma2", "no caps", _UNCAPPED),
    Variant("gemma2-tied", "gemma2", "tied embeddings", _GEMMA2_TIED),
    Variant("gemma3", "gemma3", "two rotary embeddings, one of them scaled"),
    Variant("gemma3-tied", "gemma3", "tied embeddings", {"tie_word_embeddings": True}, seed=4),
    Variant("phi3", "phi3", "fused weights"),
    Variant(
        "phi3-longrope", "phi3", "LongRoPE on both sides of its switch", _PHI3_LONG, alone=True
    ),
    Variant(
        "phi3-partial",
        "phi3",
        "partial rotation, windows, tied embeddings",
        _PHI4_MINI,
        seed=2,
        alone=True,
    ),
    Variant("mixtral", "mixtral", "2 of 4 experts per token"),
    Variant("mixtral-windows", "mixtral", "windows", {"sliding_window": 24}),
    Variant("qwen3_moe", "qwen3_moe", "experts in some layers", seed=1),
    Variant("qwen3_moe-plain", "qwen3_moe", "one expert per token", _QWEN3_MOE_PLAIN, seed=1),
    Variant("olmoe", "olmoe", "norms over all heads, bounded values"),
    Variant("olmoe-tied", "olmoe", "tied embeddings", _OLMOE_TIED, seed=1),
    Variant("dbrx", "dbrx", "bounded values, layer norms without bias"),
    Variant("deepseek", "deepseek", "latent attention, experts in groups"),
    Variant("deepseek-yarn", "deepseek", "YaRN", _DEEPSEEK_YARN, seed=2),
    Variant(
        "deepseek-plain",
        "deepseek",
        "queries without a latent, halves turned, one group, biases, tied embeddings",
        _DEEPSEEK_PLAIN,
    ),
    Variant("gpt_oss", "gpt_oss", "sinks, windows, YaRN, a clamped SwiGLU", seed=1),
)
BY_NAME = {variant.name: variant for variant in VARIANTS}

# Every variant runs eagerly at these degrees, at every bucket edge, padded left and right; some
# among the slow tests.
TP_DEGREES = (1, 2, 4)
# (variant, tp degree) of further eager runs.
WIDE = (("llama", 8), ("llama-71-heads", 8))
# Variants that run with sequence_parallel_enabled and vocab_parallel, and with rows in any order.
MODES = (
    *("llama", "llama-7-heads", "mistral", "qwen2"),
    *("llama4", "smollm3", "gpt2", "gpt_neox", "cohere2", "glm4"),
    *("qwen3", "granite", "olmo2-mqa", "gemma2", "gemma3", "phi3-partial"),
    *("mixtral", "qwen3_moe", "olmoe", "dbrx", "gpt_oss", "deepseek"),
)
# Variants with experts that run spread in every way over ranks.
EXPERTS = (
    *("mixtral", "qwen3_moe", "olmoe", "dbrx", "gpt_oss", "llama4-experts"),
    "deepseek",
)
ROWS = (
    *("llama", "mistral", "qwen2-windows", "llama4", "gpt2", "cohere2", "gemma3", "gpt_oss"),
    "deepseek",
)
# Variants with prompts and continuations on both sides of position 512.
LONG = ("llama", "llama-llama3", "mistral", "qwen2-windows", "llama4", "gemma3")
# (variant, tp degree) of compiled runs: every phase, cache layout and dtype; with the slow ones,
# every family.
CPU = (("llama-bf16", 1), ("mistral", 2), ("qwen2", 1))
CPU_SLOW = (
    *(("llama", 1), ("llama", 2), ("llama-bf16", 2), ("mistral", 1), ("qwen2-windows", 2)),
    *(("smollm3-windows", 2), ("gpt2", 1), ("gpt_neox", 1), ("cohere2", 2), ("glm4", 2)),
    *(("qwen3", 2), ("granite", 1), ("olmo2-mqa", 2), ("gemma2", 1), ("gemma3", 2)),
    *(("phi3", 1), ("mixtral", 2), ("qwen3_moe", 1), ("olmoe", 2), ("dbrx", 1), ("gpt_oss", 2)),
    *(("llama4", 2), ("deepseek", 2), ("deepseek-plain", 1)),
)
# Variants that run as one process per rank.
TORCHRUN = ("llama", "mistral", "qwen2")

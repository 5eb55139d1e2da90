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
    """

    name: str
    family: str
    shows: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    dtype: str = "float32"


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
_BIASES = {"attention_bias": True, "mlp_bias": True}
_SOME_WINDOWS = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}

FAMILIES = {"llama": "Llama 1 to 3.3", "mistral": "Mistral", "qwen2": "Qwen2, Qwen2.5"}
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
)
BY_NAME = {variant.name: variant for variant in VARIANTS}

# Every variant runs eagerly at these degrees, at every bucket edge, padded left and right.
TP_DEGREES = (1, 2, 4)
# (variant, tp degree) of further eager runs.
WIDE = (("llama", 8), ("llama-71-heads", 8))
# Variants that run with sequence_parallel_enabled and vocab_parallel, and with rows in any order.
MODES = ("llama", "llama-7-heads", "mistral", "qwen2")
ROWS = ("llama", "mistral", "qwen2-windows")
# Variants with prompts and continuations on both sides of position 512.
LONG = ("llama", "llama-llama3", "mistral", "qwen2-windows")
# (variant, tp degree) of compiled runs: every family, phase and cache layout; with the slow ones,
# every family with one rank and with two.
CPU = (("llama-bf16", 1), ("mistral", 2), ("qwen2", 1))
CPU_SLOW = (("llama", 1), ("llama", 2), ("llama-bf16", 2), ("mistral", 1), ("qwen2-windows", 2))
# Variants that run as one process per rank.
TORCHRUN = ("llama", "mistral", "qwen2")

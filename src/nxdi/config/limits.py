"""What a model's config.json may say: names, types and ranges, checked before anything is built.

A config comes from whoever published the model. A size far beyond any model would cost memory and
time before the checkpoint could contradict it, in transformers as well: it makes a list of layers.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nxdi.errors import ConfigError

MAX_LAYERS = 512
MAX_LABELS = 2**16  # transformers makes a name for each
_INT32 = 2**31 - 1
_MUCH = 1e18  # beyond any real number of a model, and within float32
_POSITIVE = (1e-6, _MUCH)


@dataclass(frozen=True)
class _Rules:
    """Limits of integers and other numbers, and types, by name; null is always allowed."""

    integers: dict[str, tuple[int, int]]
    numbers: dict[str, tuple[float, float]]
    types: dict[str, type]

    def check(self, name: str, value: Any, what: str) -> None:
        """Raises: ConfigError unless the value is within its limits; `what` names it."""
        if value is None:
            return
        if name in self.integers:
            for item in value if name in _LISTS and isinstance(value, list) else [value]:
                _check_integer(what, item, *self.integers[name])
        elif name in self.numbers:
            _check_number(what, value, *self.numbers[name])
        elif name in self.types and not isinstance(value, self.types[name]):
            raise ConfigError(f"{what} must be of type {self.types[name].__name__}; correct it")


# The most of each, several times what the largest published model has.
_SIZES = {
    "vocab_size": 2**24,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "intermediate_size_mlp": 2**20,
    "n_inner": 2**20,
    "num_hidden_layers": MAX_LAYERS,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**12,
    "max_position_embeddings": _INT32,
    "sliding_window": _INT32,
    **dict.fromkeys(("num_experts", "num_local_experts", "moe_num_experts"), 2**12),
    **dict.fromkeys(("num_experts_per_tok", "moe_top_k"), 2**12),
    **dict.fromkeys(("moe_intermediate_size", "ffn_hidden_size"), 2**20),
    "kv_n_heads": 2**12,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 2**15),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 2**12),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts"), 2**12),
    "decoder_sparse_step": MAX_LAYERS,
    "attention_chunk_size": _INT32,
    "floor_scale": _INT32,
}
_NULLABLE = {
    *("n_inner", "num_key_value_heads", "head_dim"),
    *("sliding_window", "attention_chunk_size", "q_lora_rank"),
}
_TOKEN_IDS = dict.fromkeys(  # some checkpoints say -1 for none
    ("bos_token_id", "eos_token_id", "pad_token_id"), (-1, _INT32)
)
_LISTS = {"intermediate_size", *_TOKEN_IDS}  # sizes by layer; any of several tokens
_MODEL = _Rules(
    integers={
        **{name: (1, most) for name, most in _SIZES.items()},
        **_TOKEN_IDS,
        "num_labels": (0, MAX_LABELS),
        **dict.fromkeys(("first_k_dense_replace", "medusa_num_layers"), (0, MAX_LAYERS)),
    },
    numbers={
        **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), (0, 1)),
        **dict.fromkeys(("rope_theta", "query_pre_attn_scalar", "logits_scaling"), _POSITIVE),
        **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), _POSITIVE),
        **dict.fromkeys(("embedding_multiplier", "residual_multiplier"), (-_MUCH, _MUCH)),
        **dict.fromkeys(("attention_multiplier", "logit_scale", "attn_scale"), (-_MUCH, _MUCH)),
        "routed_scaling_factor": (-_MUCH, _MUCH),
        **dict.fromkeys(("clip_qkv", "swiglu_alpha", "swiglu_limit"), _POSITIVE),
        "partial_rotary_factor": (1e-3, 1),
    },
    types={
        **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias"), bool),
        **{"use_sliding_window": bool, "hidden_act": str, "layer_types": list},
        "rope_interleave": bool,
        **{"norm_topk_prob": bool, "mlp_only_layers": list, "ffn_act_fn": dict},
    },
)
_GENERATION = _Rules(
    integers={
        **dict.fromkeys(("max_length", "max_new_tokens", "top_k"), (0, _INT32)),
        **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size"), (0, _INT32)),
        **dict.fromkeys(("num_beams", "num_return_sequences"), (0, 2**12)),  # rows of a batch
        **_TOKEN_IDS,
    },
    numbers=dict.fromkeys(
        (
            *("temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
            *("repetition_penalty", "length_penalty"),
        ),
        (-1e6, 1e6),
    ),
    types=dict.fromkeys(("do_sample", "use_cache", "return_dict_in_generate"), bool),
)
_ROPE_POSITIVE = {
    *("factor", "rope_theta", "low_freq_factor", "high_freq_factor"),
    "original_max_position_embeddings",
}
_COUNTS_LAYERS = re.compile(r"(layers|n_layer|depths?)$")
_RESERVED = {"attribute_map", "configuration_files"}
_FLOAT = "__float__"  # how transformers writes an infinity
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 100


def shown(value: object) -> str:
    """A value for an error message: its `repr`, shortened."""
    return _REPR.repr(value)


def check_names(data: Mapping[str, Any], owner: type, source: str) -> None:
    """Check the names in JSON data that become attributes of an `owner`; nested data too.

    Raises: ConfigError for a name that would replace a method or something of Python's own.
    """
    for name, value in data.items():
        is_taken = name in _RESERVED or callable(getattr(owner, name, None))
        if is_taken or (name.startswith("__") and name != _FLOAT):
            raise ConfigError(f"{source}: {shown(name)} cannot be a model's attribute; remove it")
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                check_names(inner, owner, source)


def check_values(data: Mapping[str, Any], aliases: Mapping[str, str], source: str) -> None:
    """Check types and ranges of what models read, also in nested configs; null is allowed.

    aliases: what this kind of config calls the usual names, such as `{"hidden_size": "n_embd"}`.
    Raises: ConfigError naming the value and its limits.
    """
    usual = {alias: name for name, alias in aliases.items()}
    for name, value in data.items():
        if isinstance(value, dict):
            check_values(value, {}, source)
        what = f"{source}: {shown(name)}={shown(value)}"
        _MODEL.check(usual.get(name, name), value, what)
        if isinstance(value, int) and _COUNTS_LAYERS.search(name):
            _check_integer(what, int(value), -MAX_LAYERS, MAX_LAYERS)  # -1 is the last layer
    if data.get("layer_types") is not None:
        _check_layer_types(data, source)


def check_complete(data: Mapping[str, Any], source: str) -> None:
    """Raises: ConfigError for a null where a model needs a size, or heads of an impossible size."""
    for name in _SIZES.keys() - _NULLABLE:
        if data.get(name, 0) is None:
            raise ConfigError(f"{source}: {name} is null; give its value")
    head_dim, partial = data.get("head_dim"), data.get("partial_rotary_factor") or 1
    if not isinstance(head_dim, int):
        return
    what = f"{source}: head_dim={head_dim} (by default hidden_size / num_attention_heads)"
    if head_dim < 1:
        raise ConfigError(f"{what} must be at least 1; correct it")
    turned = int(head_dim * partial)
    if "rope_parameters" in data and (turned < 2 or turned % 2):
        raise ConfigError(
            f"{what}, of which {turned} are turned, must give an even number of at least 2; "
            "correct it"
        )


def check_generation_values(data: Mapping[str, Any], source: str) -> None:
    """Check the defaults for generation that a folder gives; null is allowed.

    Raises: ConfigError naming the value and its limits.
    """
    for name, value in data.items():
        _GENERATION.check(name, value, f"{source}: {shown(name)}={shown(value)}")


def check_rope_numbers(parameters: Mapping[str, Any]) -> None:
    """Check every number of one set of RoPE parameters.

    Raises: ConfigError naming one that is negative, infinite or no number.
    """
    for name, value in parameters.items():
        is_needed = name in _ROPE_POSITIVE and value is not None
        _MODEL.check(name, value, f"RoPE parameter {name}={shown(value)}")
        for number in value if isinstance(value, list) and not is_needed else [value]:
            if is_needed or (isinstance(number, (int, float)) and not isinstance(number, bool)):
                low = _POSITIVE[0] if is_needed else 0
                _check_number(f"RoPE parameter {name}={shown(number)}", number, low, _MUCH)


def _check_layer_types(data: Mapping[str, Any], source: str) -> None:
    types, num_layers = data["layer_types"], data.get("num_hidden_layers")
    if not all(isinstance(item, str) for item in types):
        raise ConfigError(
            f"{source}: layer_types={shown(types)} must be a list of names; correct it"
        )
    if isinstance(num_layers, int) and len(types) != num_layers:
        raise ConfigError(
            f"{source}: layer_types names {len(types)} layers, num_hidden_layers={num_layers}; "
            "give one type per layer"
        )


def _check_integer(what: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{what} must be an integer from {low} to {high}; correct it")


def _check_number(what: str, value: Any, low: float, high: float) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # NaN is not within any limits
        raise ConfigError(f"{what} must be a number from {low:g} to {high:g}; correct it")

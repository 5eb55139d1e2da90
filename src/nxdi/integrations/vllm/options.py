"""vLLM's options and `override_neuron_config`, as keywords of NeuronConfig. No model is touched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nxdi import env
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.runtime.backends.choice import resolve_backend

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_OVERRIDES = ("override_neuron_config", "override-neuron-config")
# vLLM's name of each keyword that vLLM decides.
_DECIDED_BY = {
    "batch_size": "max_num_seqs",
    "max_batch_size": "max_num_seqs",
    "tkg_batch_size": "max_num_seqs",
    "seq_len": "max_model_len",
    "max_length": "max_model_len",
    "n_positions": "max_model_len",
    "tp_degree": "tensor_parallel_size",
    "torch_dtype": "dtype",
    "is_prefix_caching": "enable_prefix_caching",
    "is_block_kv_layout": "enable_prefix_caching",
    "pa_block_size": "block_size",
    "pa_num_blocks": "num_gpu_blocks_override",
    "speculation_length": "num_speculative_tokens",
    "enable_eagle_speculation": "speculative_config",
    "is_eagle3": "speculative_config",
    "is_medusa": "speculative_config",
    "num_medusa_heads": "num_speculative_tokens",
    "medusa_speculation_length": "num_speculative_tokens",
    "medusa_heads_path": "speculative_config",
}
# vLLM's kv_cache_dtype; None: that of the model.
KV_CACHE_DTYPES = {
    "auto": None,
    "fp8": "float8_e4m3fn",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}

# Methods of vLLM's speculative_config.
_EAGLE = ("eagle", "eagle3")
METHODS = ("ngram", "draft_model", *_EAGLE, "medusa")
_TREES = ("token_tree_config", "medusa_tree")


def override_options(config: VllmConfig) -> dict[str, Any]:
    """What the user put under `override_neuron_config`, a dictionary or its JSON.

    Raises: ConfigError for other keys beside it, and for what is no dictionary.
    """
    additional = config.additional_config or {}
    if not isinstance(additional, Mapping):
        raise ConfigError(f"additional_config must be a dictionary, not {additional!r}")
    unknown = sorted(set(additional) - set(_OVERRIDES))
    given = [name for name in _OVERRIDES if name in additional]
    if unknown or len(given) > 1:
        raise ConfigError(
            f"additional_config has {sorted(additional)}; put NeuronConfig's keywords into "
            'additional_config={"override_neuron_config": {...}} and nothing beside it'
        )
    value = additional[given[0]] if given else {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ConfigError(f"override_neuron_config is not JSON ({error}): {value!r}") from error
    if not isinstance(value, Mapping):
        raise ConfigError(f"override_neuron_config must be a dictionary, not {value!r}")
    return dict(value)


def asked_options(config: VllmConfig, is_paged: bool, num_blocks: int) -> dict[str, Any]:
    """The keywords of NeuronConfig that this configuration of vLLM decides, or the user gave.

    num_blocks: of a paged cache.
    Raises: ConfigError where `override_neuron_config` contradicts an option of vLLM;
        UnsupportedError for options that would have no effect.
    """
    overrides = override_options(config)
    if overrides.get("async_mode"):
        raise UnsupportedError("async_mode is for nxdi's own batching; leave it out: vLLM steps")
    trees = [name for name in _TREES if overrides.get(name) is not None]
    if trees:
        raise UnsupportedError(
            f"{trees[0]} proposes trees of tokens, and vLLM hands on tokens in line; leave it out"
        )
    decided = _decided_by_vllm(config, is_paged, num_blocks)
    tp_degree = overrides.get("tp_degree")
    if tp_degree is not None and decided["tp_degree"] == 1:
        decided["tp_degree"] = tp_degree  # 1 is also what vLLM has when nobody asked
    for name, value in decided.items():
        given = overrides.pop(name, value)
        if _plain(given) != _plain(value):
            raise ConfigError(
                f"override_neuron_config has {name}={given!r}, which contradicts vLLM's "
                f"{_DECIDED_BY.get(name, name)}: it makes that {value!r}; leave one of them out"
            )
    return {**decided, **overrides}


def neuron_options(asked: dict[str, Any]) -> dict[str, Any]:
    """All keywords that nxdi compiles with: what was asked, and what serving needs."""
    defaults: dict[str, Any] = {
        "enable_bucketing": True,
        "is_continuous_batching": True,
        "ctx_batch_size": 1,
        "output_logits": True,  # for requests that the host samples
    }
    # On a CPU host and device are one, and the host can leave greedy rows out.
    if env.samples_on_device() and resolve_backend(asked.get("backend", "auto")) == "neuron":
        defaults["on_device_sampling_config"] = {"dynamic": True}
    return {**defaults, **asked}


def _decided_by_vllm(config: VllmConfig, is_paged: bool, num_blocks: int) -> dict[str, Any]:
    rows, length = config.scheduler_config.max_num_seqs, config.model_config.max_model_len
    options: dict[str, Any] = {
        "batch_size": rows,
        "max_batch_size": rows,
        "tkg_batch_size": rows,
        "seq_len": length,
        "max_length": length,
        "n_positions": length,
        "tp_degree": config.parallel_config.tensor_parallel_size,
        "torch_dtype": config.model_config.dtype,
        "is_block_kv_layout": is_paged,
        "is_prefix_caching": bool(config.cache_config.enable_prefix_caching),
    }
    if is_paged:
        options["pa_block_size"] = config.cache_config.block_size
        options["pa_num_blocks"] = num_blocks
    if config.scheduler_config.enable_chunked_prefill:
        options["max_context_length"] = min(config.scheduler_config.max_num_batched_tokens, length)
        options["chunked_prefill_config"] = override_options(config).get(
            "chunked_prefill_config", {}
        )
    options |= _speculation(config)
    dtype = KV_CACHE_DTYPES[config.cache_config.cache_dtype]
    if dtype is not None:
        options["kv_cache_quant"] = True
        options["kv_quant_config"] = {"quant_dtype": dtype}
    return options


def _speculation(config: VllmConfig) -> dict[str, Any]:
    """What a target needs that verifies what is proposed to it."""
    asked = config.speculative_config
    if asked is None:
        return {}
    if asked.method not in METHODS:
        raise UnsupportedError(
            f"nxdi does not have the speculative method {asked.method!r}; it has "
            f"{', '.join(METHODS)}"
        )
    num_tokens = asked.num_speculative_tokens
    if asked.method == "medusa":
        return {
            "is_medusa": True,
            "num_medusa_heads": num_tokens,
            "medusa_speculation_length": num_tokens + 1,
            "medusa_heads_path": asked.model,
        }
    options: dict[str, Any] = {"speculation_length": num_tokens + 1}
    if asked.method in _EAGLE:
        options |= {"enable_eagle_speculation": True, "is_eagle3": asked.method == "eagle3"}
    return options


def _plain(value: Any) -> Any:
    """A dtype by its name, so that it equals what JSON can say."""
    return str(value).removeprefix("torch.") if not isinstance(value, (int, dict)) else value

"""Rules for the values of a NeuronConfig."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from nxdi.config.activation_quantization import activation_quantization
from nxdi.config.quantization import weight_quantization
from nxdi.config.sampling import OnDeviceSamplingConfig
from nxdi.config.token_tree import check_tree_options
from nxdi.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from nxdi.config.neuron import NeuronConfig

BACKENDS = ("auto", "cpu", "eager", "neuron", "neuron-dynamo")
DISPATCH_OPTIONS = ("AR_AG", "RS_AG", "AG_AR", "A2A")
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_AT_LEAST_ONE = (
    "seq_len",
    "max_context_length",
    "max_length",
    "n_active_tokens",
    "n_positions",
    "batch_size",
    "max_batch_size",
    "ctx_batch_size",
    "tkg_batch_size",
    "kv_cache_batch_size",
    "tp_degree",
    "logical_nc_config",
)


def validate(config: NeuronConfig) -> None:
    """Check every rule that takes more than one option, or a range of values.

    Raises: ConfigError, or UnsupportedError for a backend or dtype that is not built.
    """
    _validate_choices(config)
    for name in _AT_LEAST_ONE:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)} must be at least 1")
    _validate_lengths(config)
    _validate_heads(config)
    _validate_batches(config)
    _validate_blocks(config)
    _validate_pieces(config)
    _validate_buckets(config)
    _validate_ranks(config)
    check_tree_options(config)
    weight_quantization(config)
    activation_quantization(config)


def check_weight_dtype(dtype: torch.dtype) -> None:
    """Raise UnsupportedError unless weights may have this dtype."""
    if dtype not in WEIGHT_DTYPES:
        raise UnsupportedError(
            f"torch_dtype={dtype} is not supported; "
            "use torch.float32, torch.bfloat16 or torch.float16"
        )


def _validate_choices(config: NeuronConfig) -> None:
    _check_choice("backend", config.backend, BACKENDS)
    _check_choice("padding_side", config.padding_side, ("right", "left"))
    _check_choice("ep_dispatch_cc_option", config.ep_dispatch_cc_option, DISPATCH_OPTIONS)
    check_weight_dtype(config.torch_dtype)
    sampling = config.on_device_sampling_config
    if not isinstance(sampling, (OnDeviceSamplingConfig, type(None))):
        raise ConfigError(
            f"on_device_sampling_config={sampling!r} must be an OnDeviceSamplingConfig, a dict of "
            "its options, or None"
        )
    if config.async_mode and sampling is None:
        raise ConfigError(
            "async_mode=True starts a step from the tokens that the graph has chosen; set "
            "on_device_sampling_config"
        )
    older = config.logical_neuron_cores
    if older is not None and older != config.logical_nc_config:
        raise ConfigError(
            f"logical_neuron_cores={older} contradicts logical_nc_config="
            f"{config.logical_nc_config}; give only logical_nc_config"
        )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")


def _validate_lengths(config: NeuronConfig) -> None:
    if config.max_context_length > config.max_length:
        raise ConfigError(
            f"max_context_length={config.max_context_length} is more than max_length="
            f"{config.max_length}; raise max_length (or seq_len) or lower max_context_length"
        )
    if config.max_new_tokens is not None and not 1 <= config.max_new_tokens <= config.max_length:
        raise ConfigError(
            f"max_new_tokens={config.max_new_tokens} is not between 1 and max_length="
            f"{config.max_length}; raise max_length or change max_new_tokens"
        )
    if not 0 <= config.speculation_length <= config.max_length:
        raise ConfigError(
            f"speculation_length={config.speculation_length} is not between 0 (none) and "
            f"max_length={config.max_length}; it is the tokens of a row that one step verifies"
        )
    if config.proposes_in_graph:
        _validate_fused(config)


def _validate_fused(config: NeuronConfig) -> None:
    """Check what a graph that proposes tokens, and decides which of them are kept, needs."""
    if config.is_eagle_draft:
        raise ConfigError(
            "enable_fused_speculation=True is for a target, and is_eagle_draft=True for the head "
            "in its graphs: give the target enable_eagle_speculation=True"
        )
    given = [name for name in ("is_medusa", "token_tree_config") if getattr(config, name)]
    if given:
        raise ConfigError(
            "enable_fused_speculation=True proposes a chain of tokens within the graph, and "
            f"{given[0]} is for proposals from beside it: leave enable_fused_speculation out; "
            "trees are grown by an EAGLE head that is given to generate() as assistant_model"
        )
    if config.speculation_length < 2:
        raise ConfigError(
            f"enable_fused_speculation=True with speculation_length={config.speculation_length} "
            "proposes nothing; set it to 2 or more: each row's last token and those proposed"
        )
    if config.on_device_sampling_config is None:
        raise ConfigError(
            "enable_fused_speculation=True chooses tokens within the graph; set "
            "on_device_sampling_config=OnDeviceSamplingConfig() for greedy search, or "
            "OnDeviceSamplingConfig(dynamic=True) for sampling"
        )


def _validate_heads(config: NeuronConfig) -> None:
    if config.is_eagle3 and not config.returns_features:
        raise ConfigError(
            "is_eagle3=True is for a target with enable_eagle_speculation=True or a head with "
            "is_eagle_draft=True; set one of them"
        )
    has_head = config.is_eagle_draft or (
        config.enable_eagle_speculation and config.proposes_in_graph
    )
    if config.enable_eagle_draft_input_norm and (config.is_eagle3 or not has_head):
        raise ConfigError(
            "enable_eagle_draft_input_norm=True is for heads of EAGLE v1: is_eagle_draft=True "
            "without is_eagle3, or enable_fused_speculation with enable_eagle_speculation"
        )


def _validate_batches(config: NeuronConfig) -> None:
    for name in ("batch_size", "ctx_batch_size", "tkg_batch_size"):
        if getattr(config, name) > config.max_batch_size:
            raise ConfigError(
                f"{name}={getattr(config, name)} is more than max_batch_size="
                f"{config.max_batch_size}; raise max_batch_size"
            )
    if config.kv_cache_batch_size != config.max_batch_size:
        raise ConfigError(
            f"kv_cache_batch_size={config.kv_cache_batch_size} differs from max_batch_size="
            f"{config.max_batch_size}; the cache has one row per row of the batch: give only "
            "max_batch_size"
        )


def _validate_blocks(config: NeuronConfig) -> None:
    if config.kv_quant_config is not None and not config.kv_cache_quant:
        raise ConfigError("kv_quant_config is given; set kv_cache_quant=True as well")
    if config.is_prefix_caching and not config.is_block_kv_layout:
        raise ConfigError("is_prefix_caching=True shares blocks; set is_block_kv_layout=True")
    size, num_blocks = config.pa_block_size, config.pa_num_blocks
    budget = config.kv_cache_memory_bytes
    if budget is not None and (num_blocks or not config.is_block_kv_layout):
        raise ConfigError(
            f"kv_cache_memory_bytes={budget} decides pa_num_blocks; set is_block_kv_layout=True "
            "and leave pa_num_blocks out"
        )
    if not config.is_block_kv_layout:
        return
    if size < 1 or size > config.max_length:
        raise ConfigError(
            f"pa_block_size={size} is not between 1 and max_length={config.max_length} (tokens)"
        )
    if budget is None and num_blocks * size < config.max_length:
        raise ConfigError(
            f"pa_num_blocks={num_blocks} of pa_block_size={size} do not hold one sequence of "
            f"max_length={config.max_length}; use {-(-config.max_length // size)} or more"
        )


def _validate_pieces(config: NeuronConfig) -> None:
    window, longest = config.windowed_context_encoding_size, config.max_context_length
    if window is not None and not 1 <= window <= longest:
        raise ConfigError(
            f"windowed_context_encoding_size={window} is not between 1 and max_context_length="
            f"{longest}; prompts are cut into pieces of that many tokens"
        )
    if config.chunked_prefill_config is not None and window is not None:
        raise ConfigError(
            "chunked_prefill_config and windowed_context_encoding_size both cut prompts; give one"
        )


def _validate_buckets(config: NeuronConfig) -> None:
    """Check the ladders of lengths and the ladder of decode batches."""
    ladders = {  # the limit of each, and its least value
        "context_encoding_buckets": ("max_context_length", 1),
        "token_generation_buckets": ("max_length", 1),
        "prefix_buckets": ("max_length", 0),
        "token_generation_batches": ("tkg_batch_size", 1),
    }
    for name, (limit, lowest) in ladders.items():
        ladder = getattr(config, name)
        if ladder is not None:
            _check_ladder(name, ladder, lowest, limit, getattr(config, limit))
    for name in ("context_encoding_buckets", "token_generation_buckets", "prefix_buckets"):
        if getattr(config, name) is not None and not config.enable_bucketing:
            raise ConfigError(f"{name}={getattr(config, name)} needs enable_bucketing=True")
    if config.prefix_buckets is not None and not config.extends_prompts:
        raise ConfigError(
            f"prefix_buckets={config.prefix_buckets}, but no prompt follows a prefix; set "
            "is_prefix_caching=True (or chunked_prefill_config), or leave prefix_buckets out"
        )


def _check_ladder(name: str, ladder: Any, lowest: int, limit_name: str, limit: int) -> None:
    if not (isinstance(ladder, list) and ladder and all(_is_int_from(n, lowest) for n in ladder)):
        raise ConfigError(
            f"{name}={ladder!r} must be a list of one or more integers from {lowest} on"
        )
    if ladder != sorted(set(ladder)):
        raise ConfigError(f"{name}={ladder} must ascend without repeats; use {sorted(set(ladder))}")
    if ladder[-1] > limit:
        raise ConfigError(
            f"{name}={ladder} goes beyond {limit_name}={limit}; raise {limit_name} or remove "
            "the larger entries"
        )


def _is_int_from(value: object, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def _validate_ranks(config: NeuronConfig) -> None:
    """Check that this process has one of equal parts of exactly tp_degree ranks."""
    first, local, world = config.start_rank_id, config.local_ranks_size, config.world_size
    if world != config.tp_degree:
        raise ConfigError(
            f"world_size={world} must be tp_degree={config.tp_degree}, the ranks of all nodes; "
            "leave it out"
        )
    if local < 1 or world % local or first not in range(0, world, local):
        raise ConfigError(
            f"start_rank_id={first} with local_ranks_size={local} is not one of equal parts of "
            f"world_size={world}; node n of N has start_rank_id = n * world_size / N"
        )

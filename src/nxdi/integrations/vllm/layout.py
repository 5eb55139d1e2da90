"""How vLLM's blocks and nxdi's cache fit together.

vLLM counts blocks from 1: its block 0 holds nothing. In the contiguous layout a block stands for a
cache row, as long as a sequence may become; in the paged layout it is a block of nxdi's pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nxdi.errors import ConfigError
from nxdi.integrations.vllm.options import override_options

if TYPE_CHECKING:
    from vllm.config import VllmConfig

FIRST_BLOCK = 1


def is_paged(config: VllmConfig) -> bool:
    """Whether the cache has blocks of `block_size` tokens: on request, and to find prefixes."""
    asked = override_options(config).get("is_block_kv_layout")
    is_prefix_caching = bool(config.cache_config.enable_prefix_caching)
    if asked is False and is_prefix_caching:
        raise ConfigError(
            "is_block_kv_layout=False contradicts enable_prefix_caching=True; leave one of them out"
        )
    return bool(asked) or is_prefix_caching


def lay_out_cache(config: VllmConfig) -> None:
    """Set vLLM's block size and number of blocks to what nxdi's cache will have.

    Doing it twice changes nothing.
    Raises: ConfigError for numbers that contradict each other.
    """
    if is_paged(config):
        _lay_out_blocks(config)
    else:
        _lay_out_rows(config)


def num_cache_blocks(config: VllmConfig) -> int:
    """Blocks that hold tokens, after `lay_out_cache`."""
    num_blocks: int = config.cache_config.num_gpu_blocks_override
    return num_blocks - FIRST_BLOCK


def _lay_out_rows(config: VllmConfig) -> None:
    cache, num_rows = config.cache_config, config.scheduler_config.max_num_seqs
    asked = cache.num_gpu_blocks_override
    if asked not in (None, num_rows, num_rows + FIRST_BLOCK):
        raise ConfigError(
            f"num_gpu_blocks_override={asked}, but a contiguous cache has one block for each of "
            f"max_num_seqs={num_rows} sequences; leave it out, or ask for blocks with "
            'override_neuron_config={"is_block_kv_layout": true}'
        )
    cache.block_size = config.model_config.max_model_len
    cache.num_gpu_blocks_override = num_rows + FIRST_BLOCK


def _lay_out_blocks(config: VllmConfig) -> None:
    cache, overrides = config.cache_config, override_options(config)
    size = overrides.get("pa_block_size")
    if size is not None and not cache.user_specified_block_size:
        cache.block_size = size
    if size not in (None, cache.block_size):
        raise ConfigError(f"pa_block_size={size} contradicts block_size={cache.block_size}")
    asked, num_blocks = cache.num_gpu_blocks_override, overrides.get("pa_num_blocks")
    if num_blocks is not None and asked not in (None, num_blocks, num_blocks + FIRST_BLOCK):
        raise ConfigError(f"pa_num_blocks={num_blocks} contradicts num_gpu_blocks_override={asked}")
    if num_blocks is None:
        per_row = -(-config.model_config.max_model_len // cache.block_size)
        most = config.scheduler_config.max_num_seqs * per_row
        num_blocks = most if asked is None else asked - FIRST_BLOCK
    cache.num_gpu_blocks_override = num_blocks + FIRST_BLOCK

"""How many blocks a paged cache has, where the bytes that it may take are given."""

from __future__ import annotations

import copy

from nxdi.config.neuron import NeuronConfig
from nxdi.errors import ConfigError


def size_pool(config: NeuronConfig, block_bytes: int) -> NeuronConfig:
    """`config` with the blocks that its kv_cache_memory_bytes hold, in place of that option.

    One block more than pa_num_blocks is made, which takes padding; it is paid for as well.
    block_bytes: keys and values of one block, in all layers of one rank.
    Raises: ConfigError if the blocks do not hold one sequence.
    """
    budget = config.kv_cache_memory_bytes
    assert budget is not None
    num_blocks = budget // block_bytes - 1
    least = -(-config.max_length // config.pa_block_size)
    if num_blocks < least:
        raise ConfigError(
            f"kv_cache_memory_bytes={budget} hold {max(num_blocks, 0)} blocks of {block_bytes} "
            f"bytes on each rank, and one for padding; one sequence of max_length="
            f"{config.max_length} takes {least}: give {(least + 1) * block_bytes} or more"
        )
    sized = copy.copy(config)
    sized.pa_num_blocks, sized.kv_cache_memory_bytes = num_blocks, None
    return sized

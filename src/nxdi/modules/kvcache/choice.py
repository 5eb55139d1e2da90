"""Which cache a layer has, from its mask and the options."""

from __future__ import annotations

from nxdi.config import NeuronConfig
from nxdi.kernels.masks import Chunked, MaskPolicy, SlidingWindow
from nxdi.modules.kvcache.chunked import ChunkedCache
from nxdi.modules.kvcache.contiguous import ContiguousCache
from nxdi.modules.kvcache.paged import PagedCache
from nxdi.modules.kvcache.spec import KVCacheLayout
from nxdi.modules.kvcache.window import WindowCache


def choose_layout(
    neuron: NeuronConfig, mask: MaskPolicy, num_kv_heads: int, head_dims: tuple[int, int]
) -> KVCacheLayout:
    """Blocks if the options say so, else rows of what the mask lets a token see.

    head_dims: of a key, and of a value.
    """
    if neuron.is_block_kv_layout:
        return PagedCache(num_kv_heads, neuron.pa_num_blocks, neuron.pa_block_size, head_dims)
    spare = neuron.num_retractable
    if isinstance(mask, SlidingWindow):
        return WindowCache(num_kv_heads, mask.window, head_dims, spare)
    if isinstance(mask, Chunked):
        return ChunkedCache(num_kv_heads, mask.chunk_size, head_dims, spare)
    return ContiguousCache(num_kv_heads, neuron.max_length, head_dims)

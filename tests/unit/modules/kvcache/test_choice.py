from __future__ import annotations

from typing import Any

import pytest

from nxdi.config import NeuronConfig
from nxdi.kernels.masks import Causal, Chunked, MaskPolicy, SlidingWindow
from nxdi.modules.kvcache import (
    ChunkedCache,
    ContiguousCache,
    KVCacheLayout,
    PagedCache,
    WindowCache,
    choose_layout,
)

DIMS = (3, 5)
BLOCKS = {"is_block_kv_layout": True, "pa_block_size": 4, "pa_num_blocks": 6}


@pytest.mark.parametrize(
    ("mask", "options", "layout"),
    [
        (Causal(), {}, ContiguousCache(2, 16, DIMS)),
        (SlidingWindow(5), {}, WindowCache(2, 5, DIMS)),
        (Chunked(5), {}, ChunkedCache(2, 5, DIMS)),
        (Causal(), BLOCKS, PagedCache(2, 6, 4, DIMS)),
        (SlidingWindow(5), BLOCKS, PagedCache(2, 6, 4, DIMS)),
    ],
)
def test_a_layout_follows_from_mask_and_options(
    mask: MaskPolicy, options: dict[str, Any], layout: KVCacheLayout
) -> None:
    assert choose_layout(NeuronConfig(seq_len=16, **options), mask, 2, DIMS) == layout


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (ContiguousCache(2, 16, DIMS), (3, 2, 17)),
        (WindowCache(2, 5, DIMS), (3, 2, 6)),
        (ChunkedCache(2, 5, DIMS), (3, 2, 6)),
        (PagedCache(2, 6, 4, DIMS), (7, 2, 4)),
    ],
)
def test_keys_and_values_may_differ_in_size(layout: KVCacheLayout, shape: tuple[int, ...]) -> None:
    assert layout.shapes(3) == [(*shape, 3), (*shape, 5)]

from __future__ import annotations

import torch

from nxdi.modules.kvcache import ContiguousCache, KVCacheLayout, WindowCache
from nxdi.modules.kvcache.spec import write_slots
from tiny_modules import drawn


def test_write_slots_puts_each_token_at_its_row_and_slot() -> None:
    cache, new = drawn(3, 2, 5, 4), drawn(2, 2, 2, 4, seed=1)
    rows = torch.tensor([2, 0], dtype=torch.int32)
    slots = torch.tensor([[4, 1], [0, 3]], dtype=torch.int32)
    got = write_slots(cache, new, rows, slots)
    expected = cache.clone()
    for i, row in enumerate(rows.tolist()):
        for j, slot in enumerate(slots[i].tolist()):
            expected[row, :, slot] = new[i, :, j]
    assert torch.equal(got, expected)


def test_write_slots_changes_nothing_in_place() -> None:
    cache = drawn(2, 2, 5, 4)
    before = cache.clone()
    write_slots(cache, drawn(1, 2, 1, 4), torch.tensor([0]), torch.tensor([[2]]))
    assert torch.equal(cache, before)


def test_write_slots_takes_the_dtype_of_the_cache() -> None:
    cache = torch.zeros(1, 1, 2, 4, dtype=torch.bfloat16)
    got = write_slots(cache, drawn(1, 1, 1, 4), torch.tensor([0]), torch.tensor([[0]]))
    assert got.dtype == torch.bfloat16


def test_layouts_are_values() -> None:
    """Layers with equal layouts may share one compiled piece."""
    layouts: set[KVCacheLayout] = {WindowCache(2, 4, (8, 8)), WindowCache(2, 4, (8, 8))}
    assert len(layouts) == 1
    assert ContiguousCache(2, 4, (8, 8)) != ContiguousCache(2, 5, (8, 8))

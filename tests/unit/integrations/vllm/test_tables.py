"""Where the cache has each request; without vLLM."""

from __future__ import annotations

from nxdi.config import NeuronConfig
from nxdi.integrations.vllm.tables import make_tables


def test_blocks_are_vllms_from_zero_on() -> None:
    config = NeuronConfig(
        seq_len=32, is_block_kv_layout=True, pa_block_size=8, torch_dtype="float32"
    )
    tables, table = make_tables(config), list[int]()
    tables.add(table, [3, 1])
    tables.add(table, [4])
    assert table == [2, 0, 3]
    tables.release(table)
    assert table == []


def test_rows_are_the_lowest_that_are_free() -> None:
    """Whatever block vLLM names."""
    tables = make_tables(NeuronConfig(batch_size=3, torch_dtype="float32"))
    first, second, third = list[int](), list[int](), list[int]()
    tables.add(first, [3])
    tables.add(second, [1])
    assert (first, second) == ([0], [1])
    tables.release(first)
    tables.add(third, [2])
    assert third == [0]
    tables.add(first, [3])
    assert first == [2]

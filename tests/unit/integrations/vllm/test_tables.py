"""Where the cache has each request; without vLLM."""

from __future__ import annotations

from dataclasses import dataclass

from nxdi.config import NeuronConfig
from nxdi.generation.work import Work
from nxdi.integrations.vllm.tables import independent, make_tables


@dataclass
class Request:
    """What ordering looks at of a request."""

    table: list[int]
    tokens: list[int]


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


def test_works_that_read_what_another_writes_come_after_it() -> None:
    writer, reader, other = (Request(table, []) for table in ([0, 1], [0, 1, 2], [5]))
    works = [Work(writer, 8, 16), Work(other, 0, 3), Work(reader, 16, 20)]
    assert list(independent(works, 8)) == [works[:2], works[2:]]
    assert list(independent(works[1:], 8)) == [works[1:]]


def test_a_block_begun_before_is_its_requests_own() -> None:
    works = [Work(Request([0, 1], []), 9, 10), Work(Request([0, 2], []), 8, 12)]
    assert list(independent(works, 8)) == [works]

"""Rules between options: each broken rule names the option, the limit and the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from nxdi.config import NeuronConfig
from nxdi.errors import ConfigError


@pytest.mark.parametrize(
    "name",
    ["seq_len", "max_length", "max_context_length", "batch_size", "tp_degree", "n_positions"],
)
@pytest.mark.parametrize("value", [0, -1])
def test_counts_are_positive(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=r"must be at least 1|differs|is more than"):
        NeuronConfig(**{name: value})


PREFIXES = {"is_block_kv_layout": True, "is_prefix_caching": True}

BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"max_context_length": 256}, "max_context_length=256 is more than max_length=128"),
    ({"max_new_tokens": 129}, "max_new_tokens=129 is not between 1 and max_length=128"),
    ({"max_new_tokens": -1}, "max_new_tokens=-1 is not between"),
    ({"padding_side": "top"}, "padding_side='top' is not one of 'right', 'left'"),
    ({"batch_size": 2, "ctx_batch_size": 3}, "ctx_batch_size=3 is more than max_batch_size=2"),
    ({"tkg_batch_size": 4}, "tkg_batch_size=4 is more than max_batch_size=1"),
    ({"batch_size": 4, "max_batch_size": 2}, "batch_size=4 is more than max_batch_size=2"),
    ({"kv_cache_batch_size": 2}, "kv_cache_batch_size=2 differs from max_batch_size=1"),
    ({"context_encoding_buckets": [64]}, "needs enable_bucketing=True"),
    ({"token_generation_buckets": [64]}, "needs enable_bucketing=True"),
    ({**PREFIXES, "prefix_buckets": [64]}, "needs enable_bucketing=True"),
    ({"enable_bucketing": True, "prefix_buckets": [64]}, "no prompt follows a prefix; set is_pre"),
    (
        {"is_block_kv_layout": True, "kv_cache_memory_bytes": 4096, "pa_num_blocks": 8},
        "kv_cache_memory_bytes=4096 decides pa_num_blocks; set is_block_kv_layout=True and leave",
    ),
    ({"kv_cache_memory_bytes": 4096}, "set is_block_kv_layout=True"),
    ({"tp_degree": 4, "world_size": 8}, "world_size=8 must be tp_degree=4, the ranks of all nodes"),
    ({"world_size": 0}, "world_size=0 must be tp_degree=1"),
]


@pytest.mark.parametrize(("options", "message"), BROKEN)
def test_broken_rules_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NeuronConfig(**options)
    assert message in str(caught.value)


LADDERS = {
    "context_encoding_buckets": "max_context_length=100",
    "token_generation_buckets": "max_length=128",
    "token_generation_batches": "tkg_batch_size=4",
    "prefix_buckets": "max_length=128",
}


def _with_ladder(name: str, ladder: object) -> NeuronConfig:
    return NeuronConfig(
        max_context_length=100, batch_size=4, enable_bucketing=True, **PREFIXES, **{name: ladder}
    )


@pytest.mark.parametrize("name", LADDERS)
@pytest.mark.parametrize("ladder", [[], [-1, 2], [1, True], [1.0, 2.0], "12", (1, 2), 4])
def test_ladders_are_lists_of_positive_integers(name: str, ladder: object) -> None:
    with pytest.raises(ConfigError, match=r"must be a list of one or more integers from [01] on"):
        _with_ladder(name, ladder)


@pytest.mark.parametrize("name", LADDERS)
def test_only_a_prefix_may_be_empty(name: str) -> None:
    if name == "prefix_buckets":
        assert _with_ladder(name, [0, 2]).prefix_buckets == [0, 2]
        return
    with pytest.raises(ConfigError, match="integers from 1 on"):
        _with_ladder(name, [0, 2])


@pytest.mark.parametrize("name", LADDERS)
@pytest.mark.parametrize("ladder", [[2, 1], [1, 2, 2]])
def test_ladders_ascend(name: str, ladder: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"must ascend without repeats; use \[1, 2\]"):
        _with_ladder(name, ladder)


@pytest.mark.parametrize(("name", "limit"), LADDERS.items())
def test_ladders_stay_in_range(name: str, limit: str) -> None:
    top = int(limit.split("=")[1])
    assert getattr(_with_ladder(name, [1, top]), name) == [1, top]
    with pytest.raises(ConfigError, match=f"goes beyond {limit}"):
        _with_ladder(name, [1, top + 1])


def test_valid_combinations_pass() -> None:
    config = NeuronConfig(
        batch_size=4,
        ctx_batch_size=1,
        seq_len=512,
        max_context_length=256,
        max_new_tokens=512,
        tp_degree=2,
        sequence_parallel_enabled=True,
    )
    assert (config.ctx_batch_size, config.tkg_batch_size, config.max_new_tokens) == (1, 4, 512)


@pytest.mark.parametrize(("first", "local"), [(0, 0), (0, 3), (1, 2), (2, 4), (4, 2), (-2, 2)])
def test_ranks_here_are_one_of_equal_parts(first: int, local: int) -> None:
    message = f"start_rank_id={first} with local_ranks_size={local} is not one of equal parts of"
    with pytest.raises(ConfigError, match=message):
        NeuronConfig(tp_degree=4, start_rank_id=first, local_ranks_size=local)


@pytest.mark.parametrize(("first", "local"), [(0, 4), (0, 2), (2, 2), (3, 1)])
def test_parts_of_the_ranks(first: int, local: int) -> None:
    NeuronConfig(tp_degree=4, start_rank_id=first, local_ranks_size=local)


@pytest.mark.parametrize("length", [-1, 33])
def test_a_step_verifies_no_more_than_a_sequence_has(length: int) -> None:
    with pytest.raises(ConfigError, match=f"speculation_length={length} is not between 0"):
        NeuronConfig(seq_len=32, speculation_length=length)

"""Blocks from bytes; what a block takes is measured by the model (tests/unit/models)."""

from __future__ import annotations

import pytest

from nxdi.config import InferenceConfig, NeuronConfig
from nxdi.config.pool import size_pool
from nxdi.errors import ConfigError


def config(budget: int) -> NeuronConfig:
    return NeuronConfig(
        seq_len=100, is_block_kv_layout=True, pa_block_size=16, kv_cache_memory_bytes=budget
    )


@pytest.mark.parametrize(("budget", "num_blocks"), [(8000, 7), (8999, 7), (9000, 8), (10**6, 999)])
def test_the_blocks_and_the_one_for_padding_fit_the_budget(budget: int, num_blocks: int) -> None:
    given = config(budget)
    sized = size_pool(given, 1000)
    assert (sized.pa_num_blocks, sized.kv_cache_memory_bytes) == (num_blocks, None)
    assert (given.pa_num_blocks, given.kv_cache_memory_bytes) == (0, budget)


@pytest.mark.parametrize(("budget", "num_blocks"), [(7999, 6), (1, 0), (0, 0), (-5, 0)])
def test_a_budget_below_one_sequence(budget: int, num_blocks: int) -> None:
    message = rf"={budget} hold {num_blocks} blocks of 1000 .*=100 takes 7: give 8000 or more"
    with pytest.raises(ConfigError, match=message):
        size_pool(config(budget), 1000)


def test_a_config_that_is_not_sized_yet_survives_json() -> None:
    before = InferenceConfig(config(8000))
    again = InferenceConfig.from_json_string(before.to_json_string())
    assert again == before
    assert again.neuron_config.kv_cache_memory_bytes == 8000

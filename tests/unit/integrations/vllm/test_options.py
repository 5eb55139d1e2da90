"""vLLM's options as NeuronConfig's keywords, and blocks as vLLM counts them; without vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nxdi.config import NeuronConfig
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.integrations.vllm.layout import is_paged, lay_out_cache, num_cache_blocks
from nxdi.integrations.vllm.options import asked_options, neuron_options, override_options


def vllm_config(additional: Any = None, **changes: Any) -> Any:
    """What the plugin reads of a VllmConfig."""
    values = {
        "max_num_seqs": 4,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": 2048,
        "max_model_len": 128,
        "dtype": torch.float32,
        "block_size": 16,
        "user_specified_block_size": False,
        "enable_prefix_caching": False,
        "num_gpu_blocks_override": None,
        "cache_dtype": "auto",
        "tensor_parallel_size": 1,
        **changes,
    }
    everything = SimpleNamespace(**values)
    return SimpleNamespace(
        scheduler_config=everything,
        model_config=everything,
        cache_config=everything,
        parallel_config=everything,
        additional_config=additional,
        speculative_config=None,
    )


def overriding(**options: Any) -> dict[str, Any]:
    return {"override_neuron_config": options}


def options_of(config: Any) -> dict[str, Any]:
    lay_out_cache(config)
    return asked_options(config, is_paged(config), num_cache_blocks(config))


def test_overrides_are_a_dictionary_or_json_under_either_name() -> None:
    expected = {"enable_bucketing": False}
    for additional in (
        {"override_neuron_config": expected},
        {"override-neuron-config": expected},
        {"override_neuron_config": '{"enable_bucketing": false}'},
    ):
        assert override_options(vllm_config(additional)) == expected
    assert override_options(vllm_config(None)) == {}


@pytest.mark.parametrize(
    ("additional", "message"),
    [
        ({"override_neuron_confg": {}}, "override_neuron_confg"),
        ({"override_neuron_config": {}, "override-neuron-config": {}}, "nothing beside it"),
        ({"override_neuron_config": "{"}, "not JSON"),
        ({"override_neuron_config": [1]}, "must be a dictionary"),
        ([1], "must be a dictionary"),
    ],
)
def test_other_overrides_are_refused(additional: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override_options(vllm_config(additional))


def test_a_device_samples_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for_neuron = overriding(backend="neuron")
    neuron = NeuronConfig(**neuron_options(options_of(vllm_config(for_neuron))))
    assert neuron.on_device_sampling_config.dynamic
    monkeypatch.setenv("NEURON_ON_DEVICE_SAMPLING_DISABLED", "1")
    neuron = NeuronConfig(**neuron_options(options_of(vllm_config(for_neuron))))
    assert neuron.on_device_sampling_config is None


def test_defaults_make_a_contiguous_cache() -> None:
    config = vllm_config()
    neuron = NeuronConfig(**neuron_options(options_of(config)))
    assert (neuron.batch_size, neuron.seq_len, neuron.tp_degree) == (4, 128, 1)
    assert (neuron.ctx_batch_size, neuron.max_context_length) == (1, 128)
    assert not neuron.is_block_kv_layout
    assert neuron.enable_bucketing
    assert neuron.output_logits
    assert neuron.on_device_sampling_config is None  # on a CPU
    assert config.cache_config.block_size == 128
    assert config.cache_config.num_gpu_blocks_override == 5  # one row each, and vLLM's block 0


def test_prefix_caching_makes_blocks_for_all_sequences() -> None:
    config = vllm_config(enable_prefix_caching=True, max_model_len=100)
    neuron = NeuronConfig(**neuron_options(options_of(config)))
    assert neuron.is_prefix_caching
    assert (neuron.pa_block_size, neuron.pa_num_blocks) == (16, 4 * 7)
    assert config.cache_config.num_gpu_blocks_override == 29
    lay_out_cache(config)
    assert config.cache_config.num_gpu_blocks_override == 29


def test_the_number_of_blocks_is_the_users() -> None:
    for additional, given in (
        (overriding(is_block_kv_layout=True, pa_num_blocks=20), None),
        (overriding(is_block_kv_layout=True, pa_num_blocks=20), 20),
        (overriding(is_block_kv_layout=True), 21),
    ):
        config = vllm_config(additional, num_gpu_blocks_override=given)
        assert options_of(config)["pa_num_blocks"] == 20
        assert config.cache_config.num_gpu_blocks_override == 21


def test_chunks_are_as_long_as_a_step() -> None:
    options = options_of(vllm_config(enable_chunked_prefill=True, max_num_batched_tokens=32))
    assert options["max_context_length"] == 32
    assert NeuronConfig(**neuron_options(options)).chunked_prefill_config is not None


def test_float8_caches_are_vllms_cache_dtype() -> None:
    for name, dtype in (("fp8", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)):
        neuron = NeuronConfig(**neuron_options(options_of(vllm_config(cache_dtype=name))))
        assert neuron.cache_dtype is dtype


def test_what_says_the_same_twice_is_taken() -> None:
    additional = overriding(batch_size=4, seq_len=128, torch_dtype="float32", tp_degree=2)
    options = options_of(vllm_config(additional))
    assert (options["batch_size"], options["tp_degree"]) == (4, 2)


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"batch_size": 2}, {}, "max_num_seqs"),
        ({"seq_len": 64}, {}, "max_model_len"),
        ({"torch_dtype": "bfloat16"}, {}, "dtype"),
        ({"tp_degree": 4}, {"tensor_parallel_size": 2}, "tensor_parallel_size"),
        ({"is_prefix_caching": True}, {}, "enable_prefix_caching"),
        ({"is_block_kv_layout": False}, {"enable_prefix_caching": True}, "contradicts"),
        ({}, {"num_gpu_blocks_override": 9}, "max_num_seqs=4"),
        (
            {"is_block_kv_layout": True, "pa_num_blocks": 20},
            {"num_gpu_blocks_override": 40},
            "pa_num_blocks=20",
        ),
        (
            {"is_block_kv_layout": True, "pa_block_size": 32},
            {"user_specified_block_size": True},
            "pa_block_size=32",
        ),
    ],
)
def test_contradictions_are_refused(
    options: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        options_of(vllm_config(overriding(**options), **changes))


def test_options_without_effect_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="async_mode"):
        options_of(vllm_config(overriding(async_mode=True)))


def test_unknown_keywords_are_refused() -> None:
    with pytest.raises(ConfigError, match="enable_bucketing"):
        NeuronConfig(**neuron_options(options_of(vllm_config(overriding(enable_buckets=True)))))

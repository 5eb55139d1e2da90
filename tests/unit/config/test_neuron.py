"""NeuronConfig: defaults, derived values, closed keywords, dtypes, backend, subclassing."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from nxdi.config import NeuronConfig, OnDeviceSamplingConfig
from nxdi.errors import ConfigError, UnsupportedError


def test_lengths_follow_seq_len() -> None:
    config = NeuronConfig(seq_len=256)
    assert config.max_context_length == config.max_length == config.n_positions == 256
    assert config.n_active_tokens == config.pa_block_size == 256
    assert config.buckets == [256]
    assert config.max_new_tokens is None


def test_batch_sizes_follow_batch_size() -> None:
    config = NeuronConfig(batch_size=3)
    assert config.ctx_batch_size == config.tkg_batch_size == config.max_batch_size == 3
    assert config.kv_cache_batch_size == config.spec_batch_size == config.pa_num_blocks == 3


def test_max_new_tokens_is_what_the_longest_prompt_leaves() -> None:
    assert NeuronConfig(seq_len=128, max_context_length=96).max_new_tokens == 32
    assert NeuronConfig(max_new_tokens=0).max_new_tokens is None


def test_ranks_follow_tp_degree() -> None:
    config = NeuronConfig(tp_degree=4, world_size=None)
    assert config.world_size == config.local_ranks_size == 4


@pytest.mark.parametrize(
    ("target", "expected"), [(None, 1), ("inf2", 1), ("trn1", 1), ("trn2", 2), ("trn3", 2)]
)
def test_the_target_decides_the_cores_per_rank(target: str | None, expected: int) -> None:
    assert NeuronConfig(target=target).logical_nc_config == expected
    assert NeuronConfig(target=target, logical_nc_config=1).logical_nc_config == 1


def test_logical_cores_decide_lm_head_padding() -> None:
    assert not NeuronConfig().lm_head_pad
    config = NeuronConfig(logical_neuron_cores=2)
    assert config.logical_nc_config == 2
    assert config.lm_head_pad


def test_contradicting_names_of_one_option_are_refused() -> None:
    with pytest.raises(ConfigError, match="logical_neuron_cores=2 contradicts"):
        NeuronConfig(logical_neuron_cores=2, logical_nc_config=1)


def test_long_contexts_enlarge_the_scratchpad_page() -> None:
    assert NeuronConfig(seq_len=32768).scratchpad_page_size == 1024
    assert NeuronConfig(seq_len=32767).scratchpad_page_size is None


def test_defaults_are_not_shared() -> None:
    NeuronConfig().buckets.append(1)
    NeuronConfig().weights_to_skip_layout_optimization.append("lm_head")
    assert NeuronConfig().buckets == [128]
    assert NeuronConfig().weights_to_skip_layout_optimization == []


def test_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'sequence_length'.*did you mean"):
        NeuronConfig(sequence_length=128)
    with pytest.raises(ConfigError, match=r"'max_contxt_length' \(did you mean max_context_length"):
        NeuronConfig(max_contxt_length=64)


def test_every_unknown_keyword_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'qqqqq'.*'zzzzz'"):
        NeuronConfig(zzzzz=1, qqqqq=2)


def test_options_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        NeuronConfig(4)  # type: ignore[call-arg]  # the mistake under test


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", "4"),
        ("batch_size", True),
        ("batch_size", 1.0),
        ("seq_len", None),
        ("fused_qkv", "False"),
        ("fused_qkv", 0),
        ("max_new_tokens", "8"),
        ("padding_side", 1),
    ],
)
def test_wrong_types_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name}="):
        NeuronConfig(**{name: value})


def test_dtype_is_open_until_chosen() -> None:
    config = NeuronConfig()
    assert config.torch_dtype is torch.bfloat16
    assert not config.overrides_torch_dtype
    assert not NeuronConfig(torch_dtype=None).overrides_torch_dtype


@pytest.mark.parametrize("given", [torch.float16, "float16", "torch.float16"])
def test_dtype_may_be_a_name(given: Any) -> None:
    config = NeuronConfig(torch_dtype=given)
    assert config.torch_dtype is torch.float16
    assert config.overrides_torch_dtype
    assert config.compute_dtype is torch.float32


def test_a_chosen_dtype_may_still_give_way() -> None:
    assert not NeuronConfig(
        torch_dtype="float32", overrides_torch_dtype=False
    ).overrides_torch_dtype


def test_bad_dtypes_are_refused() -> None:
    with pytest.raises(ConfigError, match="'flot32' is not a torch dtype"):
        NeuronConfig(torch_dtype="flot32")
    with pytest.raises(ConfigError, match="'nn' is not a torch dtype"):
        NeuronConfig(torch_dtype="nn")
    with pytest.raises(UnsupportedError, match=r"torch\.float64 is not supported"):
        NeuronConfig(torch_dtype=torch.float64)
    with pytest.raises(ConfigError, match="needs a torch_dtype"):
        NeuronConfig(overrides_torch_dtype=True)


def test_on_cpu_means_the_cpu_backend() -> None:
    assert NeuronConfig().backend == "auto"
    assert NeuronConfig(on_cpu=True).backend == "cpu"
    assert NeuronConfig(on_cpu=True, backend="eager").backend == "eager"


def test_other_backends_are_refused() -> None:
    with pytest.raises(ConfigError, match="backend='gpu' is not one of"):
        NeuronConfig(backend="gpu")


def test_sampling_options_may_be_a_dict() -> None:
    config = NeuronConfig(on_device_sampling_config={"do_sample": True, "top_k": 5})
    assert config.on_device_sampling_config == OnDeviceSamplingConfig(do_sample=True, top_k=5)
    assert config.on_device_sampling
    assert not NeuronConfig().on_device_sampling
    with pytest.raises(ConfigError, match="must be an OnDeviceSamplingConfig"):
        NeuronConfig(on_device_sampling_config=True)


def test_equality_copy_and_repr() -> None:
    config = NeuronConfig(batch_size=2, seq_len=64)
    assert config == NeuronConfig(seq_len=64, batch_size=2)
    assert config != NeuronConfig(seq_len=64)
    assert copy.deepcopy(config) == config
    assert "batch_size=2" in repr(config)
    assert "tp_degree" not in repr(config)


class Attention:
    """Stands for a port's attention class."""


class PortedConfig(NeuronConfig):
    """What a port writes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attn_cls = Attention


@dataclass(init=False, repr=False, eq=False)
class ExtendedConfig(NeuronConfig):
    """A subclass with a keyword of its own."""

    num_slots: int = 2


def test_a_subclass_may_set_attributes() -> None:
    config = PortedConfig(batch_size=2)
    assert config.attn_cls is Attention
    assert config.max_batch_size == 2
    with pytest.raises(ConfigError, match="PortedConfig has no option 'batchsize'"):
        PortedConfig(batchsize=2)


def test_a_subclass_may_add_keywords() -> None:
    assert ExtendedConfig().num_slots == 2
    assert ExtendedConfig(num_slots=5, batch_size=3).num_slots == 5
    with pytest.raises(ConfigError, match="num_slots='5'"):
        ExtendedConfig(num_slots="5")

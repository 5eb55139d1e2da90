"""The treatment of NxDI's options."""

from __future__ import annotations

import pytest
import torch

from nxdi.config import NeuronConfig, kernel_options, no_op_options
from nxdi.errors import UnsupportedError


def test_refusal_names_option_value_reason_and_remedy() -> None:
    with pytest.raises(UnsupportedError) as caught:
        NeuronConfig(enable_ve_data_parallel=True)
    message = str(caught.value)
    assert "enable_ve_data_parallel=True" in message
    assert "not part of this release" in message
    assert "leave it out" in message


def test_defaults_of_refused_options_may_be_spelled_out() -> None:
    config = NeuronConfig(
        batch_size=2, seq_len=64, spec_batch_size=2, pa_block_size=64, world_size=1, cp_degree=1
    )
    assert no_op_options(config) == []


def test_refused_options_compare_with_the_derived_default() -> None:
    with pytest.raises(UnsupportedError, match="spec_batch_size=1 is refused"):
        NeuronConfig(batch_size=2, spec_batch_size=1)
    with pytest.raises(UnsupportedError, match="ep_degree=2 is refused"):
        NeuronConfig(ep_degree=2)


@pytest.mark.parametrize("name", ["rpl_reduce_dtype", "attention_dtype"])
def test_float32_is_what_is_done_anyway(name: str) -> None:
    assert getattr(NeuronConfig(**{name: "float32"}), name) is torch.float32
    with pytest.raises(UnsupportedError, match=r"or use torch\.float32"):
        NeuronConfig(**{name: "bfloat16"})


def test_no_ops_are_listed_only_when_changed() -> None:
    config = NeuronConfig(fused_qkv=True, mlp_kernel_enabled=False, batch_size=2)
    assert [(name, value) for name, value, _ in no_op_options(config)] == [("fused_qkv", True)]


def test_a_consequence_of_an_option_is_not_listed_again() -> None:
    listed = {name for name, _, _ in no_op_options(NeuronConfig(logical_nc_config=2))}
    assert listed == {"logical_nc_config"}


def test_options_about_kernels_are_those_that_decide() -> None:
    forbidden = kernel_options(NeuronConfig())
    assert set(forbidden.values()) == {False}
    assert {"mlp_kernel_enabled", "qkv_kernel_enabled", "out_proj_kernel_enabled"} < set(forbidden)
    given = {"attn_kernel_enabled": True, "attn_tkg_nki_kernel_enabled": False}
    config = NeuronConfig(**given)
    assert kernel_options(config) == forbidden | given
    assert {name for name, _, _ in no_op_options(config)} == set(given)
    assert no_op_options(NeuronConfig(**given, backend="neuron", target="trn2")) == []

from __future__ import annotations

from typing import Any

import pytest
import torch

from nxdi.config import (
    BlockwiseMatmulConfig,
    HybridShardingConfig,
    MoENeuronConfig,
    NeuronConfig,
    RouterConfig,
    serialize,
)
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.types import Phase


def test_without_degrees_experts_are_cut_like_the_rest() -> None:
    config = MoENeuronConfig(tp_degree=4)
    assert (config.moe_tp_degree, config.moe_ep_degree) == (4, 1)
    assert not config.is_expert_parallel
    # As NxDI writes them where they were not given.
    assert MoENeuronConfig(tp_degree=4, moe_tp_degree=1, moe_ep_degree=1) == config


def test_degrees_by_phase() -> None:
    hybrid = {"moe_cte_tp_degree": 4, "moe_tkg_tp_degree": 2, "moe_tkg_ep_degree": 2}
    config = MoENeuronConfig(tp_degree=4, hybrid_sharding_config=hybrid)
    assert isinstance(config.hybrid_sharding_config, HybridShardingConfig)
    degrees = {phase: config.moe_degrees(phase) for phase in Phase}
    prefill, decode = (4, 1), (2, 2)
    assert degrees == {
        Phase.PREFILL: prefill,
        Phase.EXTEND: prefill,
        Phase.DECODE: decode,
        Phase.VERIFY: decode,
    }
    assert config.is_expert_parallel


def test_none_and_nothing_mean_the_defaults() -> None:
    """So NxDI has them in its signature."""
    config = MoENeuronConfig(router_config=None, blockwise_matmul_config={})
    assert config == MoENeuronConfig()
    assert config.router_config == RouterConfig()
    assert config.blockwise_matmul_config.block_size == BlockwiseMatmulConfig().block_size == 512


def test_as_json() -> None:
    config = MoENeuronConfig(
        tp_degree=2,
        torch_dtype=torch.float32,
        capacity_factor=1.5,
        blockwise_matmul_config=BlockwiseMatmulConfig(block_size=256),
        router_config={"act_fn": "sigmoid", "dtype": "float32"},
        hybrid_sharding_config={"moe_cte_tp_degree": 2, "moe_tkg_ep_degree": 2},
        disable_normalize_top_k_affinities=True,
    )
    assert serialize.make_config(MoENeuronConfig, serialize.encode(config)) == config


def test_an_attribute_that_ports_set_is_kept() -> None:
    config = MoENeuronConfig()
    assert config.normalize_top_k_affinities
    config.normalize_top_k_affinities = False
    again: Any = serialize.make_config(MoENeuronConfig, serialize.encode(config))
    assert not again.normalize_top_k_affinities


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tp_degree": 4, "moe_ep_degree": 3}, "moe_tp_degree=1 times moe_ep_degree=3 must be"),
        ({"tp_degree": 4, "moe_tp_degree": 2}, "must be tp_degree=4"),
        ({"tp_degree": 4, "moe_ep_degree": 0}, "moe_ep_degree=0 must be"),
        (
            {"tp_degree": 4, "hybrid_sharding_config": {"moe_cte_tp_degree": 4}},
            "moe_tkg_tp_degree=1 times moe_tkg_ep_degree=1 must be tp_degree=4",
        ),
        ({"capacity_factor": 0}, "capacity_factor=0 leaves no expert a token"),
        ({"capacity_factor": -1.0}, "capacity_factor=-1.0 leaves no expert a token"),
        ({"capacity_factor": float("nan")}, "capacity_factor=nan leaves"),
        ({"glu_type": "geglu"}, "glu_type='geglu' is not one of glu, swiglu"),
        ({"ep_dispatch_cc_option": "AG"}, "'AG' is not one of 'AR_AG', 'RS_AG', 'AG_AR', 'A2A'"),
        (
            {"tp_degree": 2, "moe_ep_degree": 2, "ep_dispatch_cc_option": "A2A"},
            r"set sequence_parallel_enabled=True \(is False\)",
        ),
        (
            {
                "tp_degree": 2,
                "sequence_parallel_enabled": True,
                "ep_dispatch_cc_option": "A2A",
            },
            r"degree in prefill to 1 \(is 2\)",
        ),
        ({"blockwise_matmul_config": {"block_size": 0}}, "block_size=0 must be at least 1"),
        ({"blockwise_matmul_config": 512}, "must be a BlockwiseMatmulConfig or a dictionary"),
        ({"router_config": {"act_fn": "relu"}}, "act_fn='relu' is not one of softmax, sigmoid"),
        ({"router_config": {"act": "softmax"}}, "no option 'act'"),
        ({"moe_tp_dergee": 2}, "did you mean moe_tp_degree"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MoENeuronConfig(**options)


def test_a_router_in_16_bits_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"dtype=torch\.bfloat16 is refused"):
        RouterConfig(dtype="bfloat16")


def test_other_models_have_none_of_these_options() -> None:
    with pytest.raises(ConfigError, match="NeuronConfig has no option 'moe_ep_degree'"):
        NeuronConfig(moe_ep_degree=2)

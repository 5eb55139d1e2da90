from __future__ import annotations

from typing import Any

import pytest
import torch

from nxdi.errors import ConfigError
from nxdi.modules.moe.glu import make_glu
from tiny_moe import SPEC, options_for, spec_with


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 9}, "num_experts_per_tok=9 is not between 1 and the 8 experts"),
        ({"top_k": 0}, "num_experts_per_tok=0 is not between 1 and the 8 experts"),
        ({"num_groups": 3}, "1 of 3 groups of 8 experts"),
        ({"num_groups": 4, "top_groups": 5}, "5 of 4 groups"),
        ({"num_groups": 4, "top_groups": 1}, "num_experts_per_tok=3 is more than the experts of 1"),
    ],
)
def test_sizes_that_contradict_each_other(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec_with(**changes)


def test_options_left_alone_change_nothing() -> None:
    spec = spec_with(normalize=False, router_act="sigmoid", glu_type="swiglu", hidden_act_bias=1.0)
    assert spec.with_options(options_for()) == spec


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"disable_normalize_top_k_affinities": True}, {"normalize": False}),
        ({"router_config": {"act_fn": "sigmoid"}}, {"router_act": "sigmoid"}),
        ({"early_expert_affinity_modulation": True},) * 2,
        ({"glu_type": "swiglu", "hidden_act_scaling_factor": 1.7, "hidden_act_bias": 1.0},) * 2,
        ({"gate_clamp_upper_limit": 7.0, "gate_clamp_lower_limit": -6.0},) * 2,
        ({"up_clamp_upper_limit": 7.0, "up_clamp_lower_limit": -7.0},) * 2,
    ],
)
def test_options_that_are_given_win(options: dict[str, Any], changes: dict[str, Any]) -> None:
    assert SPEC.with_options(options_for(**options)) == spec_with(**changes)


def test_limits_of_gate_and_value() -> None:
    limits = {
        "gate_clamp_upper_limit": 2.0,
        "up_clamp_upper_limit": 3.0,
        "up_clamp_lower_limit": -3.0,
    }
    glu = make_glu(spec_with(hidden_act="relu", **limits))
    gates, values = torch.tensor([1.0, 9.0, 9.0, -9.0]), torch.tensor([5.0, -5.0, 1.0, 1.0])
    assert glu(torch.cat([gates, values])).tolist() == [3.0, -6.0, 2.0, 0.0]


@pytest.mark.parametrize("name", ["mish", ["silu"]])
def test_an_unknown_activation(name: object) -> None:
    with pytest.raises(ConfigError, match=r"activation .* is not known"):
        make_glu(spec_with(hidden_act=name))

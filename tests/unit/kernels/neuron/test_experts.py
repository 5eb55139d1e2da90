"""Decode of a mixture on a Neuron device: which kernel computes its experts, and their results."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nxdi.errors import UnsupportedError
from nxdi.kernels.neuron import candidates  # noqa: F401  registers the kernels
from nxdi.kernels.registry import platform
from nxdi.modules.moe.experts import Experts
from nxdi.modules.moe.modulation import Early, Late
from nxdi.modules.moe.selective import SelectiveLoading
from nxdi.modules.moe.spec import MoESpec
from nxdi.parallel_layers.layers import SPMDRank
from nxdi.parallel_layers.sharding import ExpertLayout
from tiny_modules import drawn, filled
from tiny_moe import SPEC, SWIGLU, close, routing_of

pytestmark = pytest.mark.usefixtures("compiler")

OPTION = "expert_mlp_nki_kernel_enabled"
CHOICES = {"one token": [[5, 0, 3]], "with nobody": [[7, -1, 6], [1, 2, 3]]}


def make_experts(spec: MoESpec = SPEC, ep_degree: int = 1, rank: int = 0) -> Experts:
    layout = ExpertLayout(spec.num_experts, tp_degree=1, ep_degree=ep_degree)
    experts = filled(lambda: Experts(spec, layout, torch.float32))
    if isinstance(experts.rank_util, SPMDRank):
        experts.rank_util.rank.data.fill_(rank)
    return experts


def run(experts: Experts, choices: list[list[int]], early: bool = False) -> Tensor:
    dispatch = SelectiveLoading(Early() if early else Late())
    return dispatch(experts, drawn(len(choices), 16), routing_of(choices))


@pytest.mark.parametrize("choices", CHOICES)
@pytest.mark.parametrize(("ep_degree", "rank"), [(1, 0), (2, 0), (2, 1)])
def test_it_gives_what_the_model_s_code_does(choices: str, ep_degree: int, rank: int) -> None:
    experts = make_experts(ep_degree=ep_degree, rank=rank)
    rows = CHOICES[choices][: 2 // ep_degree]
    with platform("neuron") as made:
        got = run(experts, rows)
    assert [choice.chosen for choice in made] == ["nxdi_nki::moe_decode"]
    close(got, run(experts, rows).double())


@pytest.mark.parametrize(
    ("options", "early", "reason"),
    [
        (SWIGLU, False, "the experts have biases"),
        ({"hidden_act": "gelu"}, False, "the experts compute GLU.*gelu"),
        ({"up_clamp_upper_limit": 7.0}, False, "the experts compute GLU.*7.0"),
        ({}, True, "tokens are weighed before the experts"),
    ],
)
def test_experts_of_another_kind_stay_the_model_s(
    options: dict[str, Any], early: bool, reason: str
) -> None:
    experts = make_experts(replace(SPEC, **options))
    with platform("neuron") as made:
        run(experts, CHOICES["one token"], early)
    (choice,) = made
    assert choice.chosen == "operators"
    assert re.search(reason, choice.reason)
    with platform("neuron", {OPTION: True}), pytest.raises(UnsupportedError, match=reason):
        run(experts, CHOICES["one token"], early)


def test_as_many_choices_as_experts_are_all_experts_at_once() -> None:
    rows = [[t % 8, (t + 1) % 8, (t + 2) % 8] for t in range(3)]
    with platform("neuron", {OPTION: True}) as made:
        run(make_experts(), rows)
    (choice,) = made
    assert choice.chosen == "operators"
    assert "9 choices of 8 experts" in choice.reason


def test_the_option_forbids_it() -> None:
    with platform("neuron", {OPTION: False}) as made:
        run(make_experts(), CHOICES["one token"])
    assert [choice.chosen for choice in made] == ["operators"]


def test_weights_of_another_dtype_stay_the_model_s() -> None:
    experts = make_experts().to(torch.bfloat16)
    with platform("neuron") as made:
        run(experts, CHOICES["one token"])
    (choice,) = made
    assert "activations are torch.float32, weights torch.bfloat16" in choice.reason

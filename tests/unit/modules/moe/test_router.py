from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from nxdi.modules.moe.router import Router, Routing
from nxdi.modules.moe.spec import MoESpec
from tiny_modules import drawn, filled
from tiny_moe import SPEC, spec_with


def routed(spec: MoESpec, x: Tensor, seed: int = 0) -> tuple[Router, Routing]:
    router = filled(lambda: Router(spec, torch.float32), seed)
    return router, router(x)


def test_softmax_then_the_best() -> None:
    x = drawn(20, 16)
    router, got = routed(SPEC, x)
    probabilities = torch.softmax(x @ router.weight.t(), dim=-1)
    weights, experts = probabilities.topk(3, dim=-1)
    assert torch.equal(got.experts, experts.int())
    torch.testing.assert_close(got.weights, weights / weights.sum(dim=-1, keepdim=True))


def test_the_best_then_softmax() -> None:
    spec, x = spec_with(act_over_top_k=True, router_bias=True, normalize=False), drawn(20, 16)
    router, got = routed(spec, x)
    assert router.bias is not None
    logits, experts = (x @ router.weight.t() + router.bias).topk(3, dim=-1)
    assert torch.equal(got.experts, experts.int())
    torch.testing.assert_close(got.weights, logits.softmax(dim=-1))


@pytest.mark.parametrize("over_top_k", [False, True])
def test_sigmoid_scaled(over_top_k: bool) -> None:
    spec = spec_with(router_act="sigmoid", act_over_top_k=over_top_k, normalize=False, scaling=2.5)
    x = drawn(20, 16)
    router, got = routed(spec, x)
    weights, experts = torch.sigmoid(x @ router.weight.t()).topk(3, dim=-1)
    assert torch.equal(got.experts, experts.int())
    torch.testing.assert_close(got.weights, 2.5 * weights)


def test_a_bias_chooses_and_does_not_weigh() -> None:
    spec = spec_with(router_act="sigmoid", selection_bias=True, normalize=False)
    x = drawn(20, 16)
    router, _ = routed(spec, x)
    assert router.e_score_correction_bias is not None
    router.e_score_correction_bias.data.copy_(torch.tensor([9.0, 0, 0, 9, 0, 0, 0, 9]))
    got = router(x)
    assert got.experts.sort(dim=-1).values.tolist() == [[0, 3, 7]] * 20
    scores = torch.sigmoid(x @ router.weight.t())
    torch.testing.assert_close(got.weights, scores.gather(1, got.experts.long()))


def test_groups_as_in_deepseek_v3() -> None:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3 import modeling_deepseek_v3

    spec = spec_with(
        num_experts=16,
        top_k=4,
        router_act="sigmoid",
        selection_bias=True,
        num_groups=4,
        top_groups=2,
        scaling=2.5,
    )
    config = DeepseekV3Config(
        hidden_size=16,
        n_routed_experts=16,
        num_experts_per_tok=4,
        n_group=4,
        topk_group=2,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
    )
    theirs: Any = modeling_deepseek_v3.DeepseekV3TopkRouter(config)
    x = drawn(50, 16)
    router, got = routed(spec, x)
    theirs.load_state_dict(router.state_dict())
    _, weights, experts = theirs(x)
    order, expected_order = got.experts.sort(dim=-1), experts.sort(dim=-1)
    assert torch.equal(order.values.long(), expected_order.values)
    torch.testing.assert_close(
        got.weights.gather(1, order.indices), weights.gather(1, expected_order.indices)
    )


@pytest.mark.parametrize("num_experts", [8, 16, 64])
def test_ties_are_broken_as_transformers_does(num_experts: int) -> None:
    """All experts equal, and pairs of equal experts."""
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe import modeling_qwen3_moe

    spec = dataclasses.replace(SPEC, num_experts=num_experts)
    config = Qwen3MoeConfig(
        hidden_size=16, num_experts=num_experts, num_experts_per_tok=3, norm_topk_prob=True
    )
    theirs: Any = modeling_qwen3_moe.Qwen3MoeTopKRouter(config)
    router, _ = routed(spec, drawn(1, 16))
    half = drawn(num_experts // 2, 16)
    for weight in (torch.zeros(num_experts, 16), torch.cat([half, half])):
        router.weight.data.copy_(weight)
        theirs.load_state_dict(router.state_dict())
        x = drawn(30, 16, seed=1)
        _, weights, experts = theirs(x)
        got = router(x)
        assert torch.equal(got.experts.long(), experts)
        torch.testing.assert_close(got.weights, weights, rtol=0, atol=1e-7)


def test_scores_are_float32_whatever_comes_in() -> None:
    x = drawn(20, 16).bfloat16()
    router = filled(lambda: Router(SPEC, torch.bfloat16))
    probabilities = torch.softmax(x.float() @ router.weight.float().t(), dim=-1)
    got = router(x)
    assert got.weights.dtype == torch.float32
    assert torch.equal(got.experts, probabilities.topk(3, dim=-1).indices.int())


def test_tokens_left_out_choose_nobody() -> None:
    _, got = routed(SPEC, drawn(3, 16))
    without = got.without(torch.tensor([False, True, False]))
    assert without.experts[1].tolist() == [-1, -1, -1]
    assert torch.equal(without.experts[[0, 2]], got.experts[[0, 2]])

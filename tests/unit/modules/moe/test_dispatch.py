"""Every way from tokens to experts gives what plain code gives: one rank, whatever the choices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nxdi.modules.moe.all_experts import AllExperts
from nxdi.modules.moe.blockwise import Blockwise, most_blocks
from nxdi.modules.moe.capacity import CapacityFactor, choose_capacity
from nxdi.modules.moe.experts import Experts
from nxdi.modules.moe.modulation import Early, Late
from nxdi.modules.moe.router import Routing
from nxdi.modules.moe.selective import SelectiveLoading
from nxdi.modules.moe.spec import MoESpec
from nxdi.parallel_layers.sharding import ExpertLayout
from tiny_modules import drawn, filled
from tiny_moe import SPEC, SWIGLU, close, plain_sum, routing_of, spec_with

Dispatch = Callable[[Experts, torch.Tensor, Routing], torch.Tensor]
STRATEGIES: dict[str, Callable[[Late], Dispatch]] = {
    "all": AllExperts,
    "selective": SelectiveLoading,
    **{f"blocks of {n}": lambda m, n=n: Blockwise(m, n) for n in (1, 2, 3, 100)},
    "room for all": lambda m: CapacityFactor(m, 8 / 3),
}
CHOICES = {
    "one token": [[5, 0, 3]],
    "two tokens": [[1, 2, 3], [3, 2, 1]],
    "all to one set": [[2, 6, 7]] * 40,
    "in turn": [[t % 8, (t + 3) % 8, (t + 5) % 8] for t in range(40)],
    "with nobody": [[0, 1, 2], [-1, -1, -1], [7, -1, 6]] * 9,
}


def make_experts(spec: MoESpec) -> tuple[Experts, dict[str, torch.Tensor]]:
    layout = ExpertLayout(spec.num_experts, tp_degree=1, ep_degree=1)
    experts = filled(lambda: Experts(spec, layout, torch.float32))
    return experts, {f"experts.{name}": tensor for name, tensor in experts.state_dict().items()}


@pytest.mark.parametrize("choices", CHOICES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("formula", [{}, SWIGLU, {"early_expert_affinity_modulation": True}])
def test_against_plain_code(formula: dict[str, Any], strategy: str, choices: str) -> None:
    spec, routing = spec_with(**formula), routing_of(CHOICES[choices])
    experts, weights = make_experts(spec)
    modulation = Early() if spec.early_expert_affinity_modulation else Late()
    x = drawn(len(CHOICES[choices]), 16)
    got = STRATEGIES[strategy](modulation)(experts, x, routing)
    close(got, plain_sum(spec, weights, x, routing))


def test_early_modulation_of_experts_with_biases() -> None:
    """What is not chosen must not leave its bias behind."""
    spec = spec_with(**SWIGLU, early_expert_affinity_modulation=True)
    experts, weights = make_experts(spec)
    x, routing = drawn(40, 16), routing_of(CHOICES["in turn"])
    for make in STRATEGIES.values():
        close(make(Early())(experts, x, routing), plain_sum(spec, weights, x, routing))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_token_that_overflows_is_alone_in_it(strategy: str) -> None:
    experts, weights = make_experts(SPEC)
    routing, x = routing_of(CHOICES["with nobody"]), drawn(27, 16)
    x[0] = torch.inf
    got = STRATEGIES[strategy](Late())(experts, x, routing)
    assert not got[0].isfinite().all()
    expected = plain_sum(SPEC, weights, x[1:], Routing(routing.weights[1:], routing.experts[1:]))
    close(got[1:], expected)


def groups_computed(
    dispatch: Dispatch, num_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, int]:
    """(groups, rows of each) that the experts are given."""
    experts, _ = make_experts(SPEC)
    seen = []

    def forward(x: torch.Tensor, which: torch.Tensor | None = None) -> torch.Tensor:
        seen.append((x.shape[0], x.shape[1]))
        return x

    monkeypatch.setattr(experts, "forward", forward)
    rows = [[t % 8, (t + 1) % 8, (t + 2) % 8] for t in range(num_tokens)]
    dispatch(experts, drawn(num_tokens, 16), routing_of(rows))
    return seen[0]


def test_decode_of_one_row_computes_its_experts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    selective = SelectiveLoading(Late())
    assert groups_computed(selective, 1, monkeypatch) == (3, 1)
    assert groups_computed(selective, 2, monkeypatch) == (6, 1)
    assert groups_computed(selective, 3, monkeypatch) == (8, 3)  # 9 choices of 8 experts


def test_prefill_takes_blocks_where_they_are_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    blockwise = Blockwise(Late(), 16)
    assert groups_computed(blockwise, 16, monkeypatch) == (8, 16)
    assert groups_computed(blockwise, 100, monkeypatch) == (most_blocks(100, 3, 8, 16), 16)


def test_blocks_suffice_for_any_choice() -> None:
    # 10 choices among 4 experts in blocks of 3: 4 begun ones hold 1 each, 6 more fill 2.
    assert most_blocks(5, 2, 4, 3) == 6
    assert most_blocks(1, 2, 8, 4) == 2
    # An expert-parallel rank with one expert: one choice per token at most.
    assert most_blocks(8, 2, 1, 4) == 2


def plain_dropping(routing: Routing, capacity: int) -> Routing:
    """The first `capacity` tokens of each expert keep it."""
    taken = [0] * SPEC.num_experts
    kept = routing.experts.clone()
    for token, experts in enumerate(routing.experts.tolist()):
        for place, expert in enumerate(experts):
            if expert >= 0:
                taken[expert] += 1
                if taken[expert] > capacity:
                    kept[token, place] = -1
    return Routing(routing.weights, kept)


@pytest.mark.parametrize("factor", [0.01, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("choices", CHOICES)
def test_dropping_equals_plain_code_with_the_same_capacity(factor: float, choices: str) -> None:
    routing = routing_of(CHOICES[choices])
    num_tokens = len(CHOICES[choices])
    experts, weights = make_experts(SPEC)
    x = drawn(num_tokens, 16)
    capacity = choose_capacity(num_tokens, 3, 8, factor)
    got = CapacityFactor(Late(), factor)(experts, x, routing)
    close(got, plain_sum(SPEC, weights, x, plain_dropping(routing, capacity)))


def test_capacity_is_a_share_of_the_choices() -> None:
    assert choose_capacity(40, 3, 8, 1.0) == 15
    assert choose_capacity(40, 3, 8, 1.5) == 23
    assert choose_capacity(40, 3, 8, 100.0) == 40
    assert choose_capacity(1, 1, 64, 0.1) == 1

"""Tokens that travel to the ranks of their experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nxdi.modules.context import running
from nxdi.modules.kvcache.spec import CacheState
from nxdi.modules.moe import MoE, MoESpec
from nxdi.modules.moe.exchange import exchanged_bytes
from nxdi.parallel_layers.groups import SimulatedWorld
from nxdi.types import Phase
from tiny_modules import drawn, layer_context, rank_modules
from tiny_moe import SPEC, close, options_for, run_ranks, spec_with, weights_of

NO_CACHE = CacheState(torch.empty(0), torch.empty(0))
MANY = MoESpec(hidden_size=16, intermediate_size=12, num_experts=64, top_k=6)


def exchanging(tp: int, **options: Any) -> dict[str, Any]:
    return {
        "tp_degree": tp,
        "moe_ep_degree": tp,
        "sequence_parallel_enabled": True,
        "ep_dispatch_cc_option": "A2A",
        **options,
    }


def run_pieces(
    spec: MoESpec, weights: dict[str, Tensor], x: Tensor, tp: int, **options: Any
) -> Tensor:
    """Each rank has its piece of the sequence, and returns it."""
    config = options_for(**exchanging(tp, **options))
    modules = rank_modules(lambda: MoE(spec, config), tp, weights)
    pieces = zip(modules, x.chunk(tp, dim=1), strict=True)
    got = SimulatedWorld(tp).run([lambda m=m, part=part: m(part) for m, part in pieces])
    return torch.cat(got, dim=1)


@pytest.mark.parametrize(("spec", "tp"), [(SPEC, 2), (SPEC, 4), (MANY, 8)])
@pytest.mark.parametrize("changes", [{}, {"early_expert_affinity_modulation": True}])
def test_as_one_rank_computes_it(spec: MoESpec, tp: int, changes: dict[str, Any]) -> None:
    spec = dataclasses.replace(spec, **changes)
    weights, x = weights_of(spec), drawn(2, 16, 16)
    (alone,) = run_ranks(spec, weights, x)
    close(run_pieces(spec, weights, x, tp), alone.double())


def test_all_tokens_to_one_rank() -> None:
    spec = spec_with(router_bias=True)
    weights, x = weights_of(spec), drawn(2, 8, 16)
    weights["router.weight"] = torch.zeros(8, 16)
    weights["router.bias"] = torch.zeros(8).index_fill(0, torch.tensor([2, 3, 6]), 5.0)
    (alone,) = run_ranks(spec, weights, x)
    close(run_pieces(spec, weights, x, 4), alone.double())


def test_an_expert_that_sees_every_token() -> None:
    spec = spec_with(shared_size=10, has_shared_gate=True)
    weights, x = weights_of(spec), drawn(2, 8, 16)
    (alone,) = run_ranks(spec, weights, x)
    close(run_pieces(spec, weights, x, 4), alone.double())


def test_decode_has_no_pieces_to_exchange() -> None:
    weights, x = weights_of(SPEC), drawn(3, 1, 16)
    (alone,) = run_ranks(SPEC, weights, x, Phase.DECODE)
    for got in run_ranks(SPEC, weights, x, Phase.DECODE, **exchanging(4)):
        close(got, alone.double())


def test_padding_takes_nobodys_place() -> None:
    """Of 4 tokens of a rank an expert takes one, which is the first that is none of padding."""
    spec = spec_with(top_k=1, router_bias=True)
    weights = weights_of(spec)
    weights["router.weight"] = torch.zeros(8, 16)  # all go to expert 3
    weights["router.bias"] = torch.zeros(8).index_fill(0, torch.tensor([3]), 5.0)
    positions = torch.tensor([[-1, -1, 0, 1, 2, 3, -1, -1]])
    ctx = layer_context(Phase.PREFILL, positions, NO_CACHE, 8)
    config = options_for(**exchanging(2, capacity_factor=2.0))
    modules = rank_modules(lambda: MoE(spec, config), 2, weights)
    x = drawn(1, 8, 16)
    run = zip(modules, x.chunk(2, dim=1), strict=True)
    got = SimulatedWorld(2).run([lambda m=m, part=part: within(ctx, m, part) for m, part in run])
    kept = torch.cat(got, dim=1)[0].abs().amax(dim=1) > 0
    assert kept.tolist() == [False, False, True, False, True, False, False, False]


def within(ctx: Any, module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with running(lambda module: ctx):
        return module(x)


class CountExchanged(TorchDispatchMode):
    """Adds up what a rank sends to others."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.nxdi.all_to_all.default:
            x, _, _, _, group_size = args
            self.num_bytes += x.nbytes * (group_size - 1) // group_size
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("capacity_factor", [None, 1.5])
def test_what_is_exchanged_is_what_was_predicted(capacity_factor: float | None) -> None:
    config = options_for(**exchanging(8, capacity_factor=capacity_factor))
    modules = rank_modules(lambda: MoE(MANY, config), 8, weights_of(MANY))
    positions = torch.arange(32).expand(2, -1)
    ctx = layer_context(Phase.PREFILL, positions, NO_CACHE, 32)
    pieces = zip(modules, drawn(2, 32, 16).chunk(8, dim=1), strict=True)

    def run(module: MoE, part: Tensor) -> int:
        with CountExchanged() as counted:
            within(ctx, module, part)
        return counted.num_bytes

    found = SimulatedWorld(8).run([lambda m=m, part=part: run(m, part) for m, part in pieces])
    assert set(found) == {exchanged_bytes(MANY, config, num_tokens=2 * 4)}
    assert found[0] > 0

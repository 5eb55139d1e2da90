from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi.kernels.masks import Causal, SlidingWindow
from nxdi.modules.context import StepContext
from nxdi.modules.kvcache import ContiguousCache
from nxdi.modules.order import InLine
from nxdi.types import Phase
from tiny_modules import drawn, empty_cache

LAYOUT = ContiguousCache(num_kv_heads=2, max_len=8, head_dims=(4, 4))
POSITIONS = torch.tensor([[0, 1, 2], [0, 1, -1]], dtype=torch.int32)


def make_step(num_layers: int = 2) -> StepContext:
    caches = [empty_cache(LAYOUT, num_rows=2) for _ in range(num_layers)]
    rows = torch.arange(2, dtype=torch.int32)
    return StepContext(Phase.PREFILL, POSITIONS, rows, 8, caches, order=InLine(POSITIONS))


def test_a_layer_sees_the_step() -> None:
    layer = make_step().at(1)
    assert layer.phase is Phase.PREFILL
    assert layer.position_ids is POSITIONS
    assert layer.layer == 1


def test_append_replaces_this_layer_s_cache_only() -> None:
    step = make_step()
    before = list(step.caches)
    k, v = drawn(2, 2, 2, 3, 4)
    attended = step.at(1).append(LAYOUT, k, v)
    assert torch.equal(attended.keys, k)
    assert step.new_states()[0] is before[0]
    assert step.new_states()[1] is not before[1]
    assert bool(before[1].k.isnan().all())
    assert torch.equal(step.new_states()[1].v[0, :, :3], v[0])


def test_padding_queries_see_everything() -> None:
    allowed = make_step().at(0).allowed(Causal(), POSITIONS)
    assert allowed[1].tolist() == [[True, False, False], [True, True, False], [True, True, True]]


@dataclass(frozen=True)
class Counted:
    """Causal, counting its calls."""

    calls: list[int]

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        self.calls.append(1)
        return Causal().allowed(query_positions, key_positions)

    def __hash__(self) -> int:
        return 0


def test_a_mask_is_built_once_for_all_layers() -> None:
    step, policy = make_step(), Counted([])
    masks = [step.at(layer).allowed(policy, POSITIONS) for layer in range(2)]
    assert masks[0] is masks[1]
    assert len(policy.calls) == 1


def test_each_policy_and_key_range_has_its_mask() -> None:
    layer = make_step().at(0)
    keys = torch.arange(5)[None]
    assert layer.allowed(Causal(), POSITIONS).shape == (2, 3, 3)
    assert layer.allowed(Causal(), keys).shape == (2, 3, 5)
    assert not torch.equal(layer.allowed(SlidingWindow(1), keys), layer.allowed(Causal(), keys))

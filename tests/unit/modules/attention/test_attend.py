from __future__ import annotations

from typing import Any

import pytest
import torch

from nxdi.kernels.masks import Causal, SlidingWindow
from nxdi.kernels.ops import AttendCall
from nxdi.kernels.registry import Kernel
from nxdi.modules.attention import attend as attend_module
from nxdi.modules.attention.attend import Attend
from nxdi.modules.kvcache import ContiguousCache
from nxdi.modules.kvcache.spec import Attended
from nxdi.types import Phase
from plain_attention import allowed_pairs, plain_attention
from tiny_modules import drawn, empty_cache, layer_context
from tolerances import ATTENTION_FP32

LAYOUT = ContiguousCache(num_kv_heads=2, max_len=16, head_dims=(4, 4))
POSITIONS = torch.tensor([[3, 4], [5, 6]], dtype=torch.int32)
KEYS = torch.arange(8, dtype=torch.int32).expand(2, 8)


def attended() -> Attended:
    k, v = drawn(2, 2, 2, 8, 4, seed=1)
    return Attended(k, v, KEYS)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_against_the_formula(window: int | None, softcap: float | None, has_sinks: bool) -> None:
    mask = Causal() if window is None else SlidingWindow(window)
    sinks = drawn(6, seed=2) if has_sinks else None
    q, given = drawn(2, 6, 2, 4), attended()
    ctx = layer_context(Phase.DECODE, POSITIONS, empty_cache(LAYOUT, 2), num_slots=8)
    got = Attend(mask, 0.7, softcap)(q, given, sinks, ctx)
    allowed = allowed_pairs(POSITIONS, KEYS, window)
    expected = plain_attention(q, given.keys, given.values, allowed, 0.7, softcap, sinks)
    torch.testing.assert_close(got.double(), expected, rtol=ATTENTION_FP32, atol=ATTENTION_FP32)


@pytest.mark.parametrize(("phase", "aligned"), [(Phase.PREFILL, True), (Phase.DECODE, False)])
def test_what_a_kernel_is_told(
    monkeypatch: pytest.MonkeyPatch, phase: Phase, aligned: bool
) -> None:
    calls: list[AttendCall] = []

    def choose(op: str, call: AttendCall) -> Kernel:
        assert op == "attend"
        calls.append(call)
        return Kernel("zeros", lambda q, *rest: torch.zeros_like(q), lambda call: None)

    monkeypatch.setattr(attend_module, "choose", choose)
    ctx: Any = layer_context(phase, POSITIONS, empty_cache(LAYOUT, 2), num_slots=8)
    got = Attend(Causal(), 0.7, 0.8)(drawn(2, 6, 2, 4), attended(), drawn(6), ctx)
    assert torch.equal(got, torch.zeros(2, 6, 2, 4))
    assert calls == [
        AttendCall(
            num_kv_heads=2,
            group_size=3,
            num_queries=2,
            num_keys=8,
            head_dim=4,
            value_dim=4,
            dtype=torch.float32,
            mask=Causal(),
            scale=0.7,
            softcap=0.8,
            has_sinks=True,
            aligned=aligned,
        )
    ]

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nxdi.errors import UnsupportedError
from nxdi.kernels.masks import Causal, MaskPolicy, SlidingWindow
from nxdi.kernels.ops import AttendCall
from nxdi.kernels.reference.attend import attend_explicit, attend_fused_decode, attend_sdpa
from nxdi.kernels.registry import choose, platform
from plain_attention import plain_attention
from tolerances import ATTENTION_FP32

BATCH, KV_HEADS, GROUP, HEAD_DIM = 2, 2, 3, 8


def make_call(num_queries: int, num_keys: int, **options: Any) -> AttendCall:
    call = {
        "num_kv_heads": KV_HEADS,
        "group_size": GROUP,
        "num_queries": num_queries,
        "num_keys": num_keys,
        "head_dim": HEAD_DIM,
        "dtype": torch.float32,
        "mask": Causal(),
        "scale": 0.4,
        "softcap": None,
        "has_sinks": False,
        "aligned": num_queries == num_keys,
    }
    return AttendCall(**{**call, **options})


def drawn(call: AttendCall) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(call.num_queries + call.num_keys)
    q = torch.randn(BATCH, KV_HEADS, GROUP, call.num_queries, HEAD_DIM, generator=generator)
    k, v = torch.randn(2, BATCH, KV_HEADS, call.num_keys, HEAD_DIM, generator=generator)
    return 2 * q, 2 * k, v


def positions(call: AttendCall) -> tuple[Tensor, Tensor]:
    """The queries are the last tokens before the end."""
    keys = torch.arange(call.num_keys).expand(BATCH, -1)
    return keys[:, call.num_keys - call.num_queries :], keys


def check(kernel: Callable[..., Tensor], call: AttendCall) -> None:
    q, k, v = drawn(call)
    allowed = call.mask.allowed(*positions(call))
    sinks = torch.tensor([[0.5, -1, 2], [0, 3, -2]]) if call.has_sinks else None
    got = kernel(q, k, v, allowed, sinks, call)
    assert got.shape == q.shape
    flat_sinks = None if sinks is None else sinks.flatten()
    expected = plain_attention(q.flatten(1, 2), k, v, allowed, call.scale, call.softcap, flat_sinks)
    torch.testing.assert_close(
        got.flatten(1, 2).double(), expected, rtol=ATTENTION_FP32, atol=ATTENTION_FP32
    )


MASKS: list[MaskPolicy] = [Causal(), SlidingWindow(3)]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(6, 6), (1, 9), (2, 5)])
def test_explicit(
    mask: MaskPolicy, softcap: float | None, has_sinks: bool, num_queries: int, num_keys: int
) -> None:
    call = make_call(num_queries, num_keys, mask=mask, softcap=softcap, has_sinks=has_sinks)
    check(attend_explicit, call)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_fused_decode(mask: MaskPolicy, softcap: float | None, has_sinks: bool) -> None:
    check(attend_fused_decode, make_call(1, 9, mask=mask, softcap=softcap, has_sinks=has_sinks))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("num_queries", "num_keys"), [(6, 6), (1, 9), (2, 5)])
def test_sdpa(mask: MaskPolicy, num_queries: int, num_keys: int) -> None:
    check(attend_sdpa, make_call(num_queries, num_keys, mask=mask))


def test_sdpa_without_the_promise_of_alignment() -> None:
    check(attend_sdpa, make_call(6, 6, aligned=False))


def test_a_query_that_sees_nothing_but_a_sink_is_zero() -> None:
    call = make_call(1, 4, has_sinks=True)
    q, k, v = drawn(call)
    allowed = torch.zeros(BATCH, 1, 4, dtype=torch.bool)
    got = attend_explicit(q, k, v, allowed, torch.zeros(KV_HEADS, GROUP), call)
    assert torch.equal(got, torch.zeros_like(q))


def test_a_query_that_sees_nothing_stays_finite() -> None:
    call = make_call(1, 4)
    q, k, v = drawn(call)
    allowed = torch.zeros(BATCH, 1, 4, dtype=torch.bool)
    for kernel in (attend_explicit, attend_fused_decode):
        assert bool(kernel(q, k, v, allowed, None, call).isfinite().all())


@pytest.mark.parametrize(
    ("call", "chosen", "refused"),
    [
        (make_call(1, 256), "fused_decode", ()),
        (make_call(1, 257), "sdpa", ("fused_decode",)),
        (make_call(8, 8), "sdpa", ("fused_decode",)),
        (make_call(1, 257, softcap=2.0), "explicit", ("fused_decode", "sdpa")),
        (make_call(8, 8, has_sinks=True), "explicit", ("fused_decode", "sdpa")),
    ],
)
def test_choice_on_a_cpu(call: AttendCall, chosen: str, refused: tuple[str, ...]) -> None:
    with platform("cpu") as choices:
        assert choose("attend", call).name == chosen
    (choice,) = choices
    assert tuple(name for name, _ in choice.refused) == refused
    assert all(reason for _, reason in choice.refused)


def test_the_reference_is_the_generic_choice() -> None:
    assert choose("attend", make_call(1, 4)).name == "explicit"


def test_no_kernel_is_named_with_the_call() -> None:
    with pytest.raises(UnsupportedError, match=r"no kernel for attend_backwards AttendCall"):
        choose("attend_backwards", make_call(1, 4))

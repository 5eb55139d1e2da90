from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attend_calls import BATCH, GROUP, HEAD_DIM, KV_HEADS, check, drawn, make_call
from nxdi.errors import UnsupportedError
from nxdi.kernels.masks import Causal, MaskPolicy, SlidingWindow
from nxdi.kernels.ops import AttendCall
from nxdi.kernels.reference.attend import attend_explicit, attend_latent
from nxdi.kernels.registry import choose

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


@pytest.mark.parametrize("value_dim", [3, 11])
def test_values_of_another_size(value_dim: int) -> None:
    check(attend_explicit, make_call(2, 5, value_dim=value_dim))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("num_queries", "num_keys"), [(6, 6), (1, 9), (2, 5)])
def test_keys_in_two_parts(mask: MaskPolicy, num_queries: int, num_keys: int) -> None:
    """The values, and three more numbers."""
    values = HEAD_DIM - 3

    def joined(
        q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, sinks: None, call: AttendCall
    ) -> Tensor:
        k[..., :values] = v
        q_rest, rest = q[..., values:], k[..., values:]
        return attend_latent(q[..., :values], q_rest, rest, v, allowed, call)

    check(joined, make_call(num_queries, num_keys, mask=mask, value_dim=values))


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
    assert bool(attend_explicit(q, k, v, allowed, None, call).isfinite().all())


def test_the_reference_is_the_generic_choice() -> None:
    assert choose("attend", make_call(1, 4)).name == "explicit"
    assert choose("attend_latent", make_call(1, 4)).name == "explicit"


def test_no_kernel_is_named_with_the_call() -> None:
    with pytest.raises(UnsupportedError, match=r"no kernel for attend_backwards AttendCall"):
        choose("attend_backwards", make_call(1, 4))

"""The library's attention is chosen where it takes what is known, and called as is published."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from nxdi.kernels.masks import Causal, SlidingWindow
from nxdi.kernels.neuron import attend as _attend  # noqa: F401  registers all of attention
from nxdi.kernels.neuron import nkilib
from nxdi.kernels.ops import AttendCall
from nxdi.kernels.reference.attend import attend_explicit
from nxdi.kernels.registry import choose, platform
from tolerances import NKI

OWN = "nxdi_nki::attention_prefill"
CALL = AttendCall(
    num_kv_heads=2,
    group_size=3,
    num_queries=512,
    num_keys=512,
    head_dim=16,
    value_dim=16,
    dtype=torch.bfloat16,
    mask=Causal(),
    scale=0.25,
    softcap=None,
    has_sinks=False,
    aligned=True,
)


def attention_cte(  # noqa: PLR0913  # as published
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    causal_mask: bool = True,
    k_prior: Any = None,
    sink: Any = None,
    tp_q: bool = True,
    tp_k: bool = False,
    tp_out: bool = False,
    cache_softmax: bool = False,
) -> Tensor:
    """A stand-in by the published conventions: q [B, S, D] of all heads, k and v [Bkv, S, D]."""
    assert (causal_mask, tp_q, tp_k, tp_out) == (True, True, True, False)
    assert v.shape == k.shape
    copies = q.shape[0] // k.shape[0]
    keys, values = (x.repeat_interleave(copies, 0).float() for x in (k, v))
    scores = q.float() @ keys.transpose(1, 2) * scale
    future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    return (weights @ values).to(q.dtype)


def renamed(query: Tensor, k: Tensor, v: Tensor, scale: float) -> None: ...


def with_more(  # noqa: PLR0913  # as published, and one
    q: Any, k: Any, v: Any, scale: Any, causal_mask: Any, tp_q: Any, tp_k: Any, tp_out: Any, s: Any
) -> None: ...


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Puts a kernel where the library has its own, with a compiler beside it."""
    monkeypatch.setattr(nkilib, "missing_compiler", lambda: None)
    monkeypatch.setattr("nxdi.kernels.neuron.op.missing_compiler", lambda: None)

    def put(kernel: Any) -> None:
        name = ""
        for part in ("nkilib", "core", "attention", "attention_cte"):
            name = f"{name}.{part}".removeprefix(".")
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        if kernel is not None:
            sys.modules[name].attention_cte = kernel  # type: ignore[attr-defined]  # a fake

    return put


def test_it_is_chosen_where_its_signature_is_the_published_one(
    install: Callable[[Any], None],
) -> None:
    install(attention_cte)
    with platform("neuron"):
        assert choose("attend", CALL).name == nkilib.NAME
    with platform("neuron", {"attn_kernel_enabled": True}):
        assert choose("attend", CALL).name == nkilib.NAME
        assert choose("attend", replace(CALL, has_sinks=True)).name == OWN
    with platform("neuron", {"attn_kernel_enabled": False}):
        assert choose("attend", CALL).name == "explicit"


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (None, "has no attention_cte"),
        (renamed, "takes no q, causal_mask, tp_q, tp_k, tp_out"),
        (with_more, "asks for s"),
        (3, "not a callable object"),
    ],
)
def test_another_one_is_declined(install: Callable[[Any], None], kernel: Any, reason: str) -> None:
    install(kernel)
    with platform("neuron") as choices:
        assert choose("attend", CALL).name == OWN
    (choice,) = choices
    assert reason in dict(choice.refused)[nkilib.NAME]


def test_without_the_library_it_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No module named 'nkilib'" in (nkilib.mismatch() or "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"aligned": False}, "no prompt"),
        ({"num_queries": 100, "num_keys": 100}, "no prompt in 512s"),
        ({"mask": SlidingWindow(5)}, "more than a causal mask"),
        ({"softcap": 3.0}, "more than a causal mask"),
        ({"head_dim": 192}, "not one size"),
        ({"dtype": torch.float32}, "16 bits"),
    ],
)
def test_what_it_does_not_serve(
    install: Callable[[Any], None], change: dict[str, Any], reason: str
) -> None:
    install(attention_cte)
    with platform("neuron") as choices:
        choose("attend", replace(CALL, **change))
    (choice,) = choices
    assert reason in dict(choice.refused)[nkilib.NAME]


def test_both_of_its_implementations_are_attention(install: Callable[[Any], None]) -> None:
    """What a CPU computes in its place, and the call that a device would make."""
    install(attention_cte)
    call = replace(CALL, num_queries=20, num_keys=20)
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 2, 3, 20, 16), (2, 2, 20, 16), (2, 2, 20, 16)
    q, k, v = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    keys = torch.arange(20)[None]
    allowed = Causal().allowed(keys, keys).expand(2, -1, -1)
    expected = attend_explicit(q.float(), k.float(), v.float(), allowed, None, call)
    bound = NKI[torch.bfloat16] * float(expected.abs().max())
    on_cpu = nkilib.attend_prefill(q, k, v, allowed, None, call)
    on_device = nkilib._run(q, k, v, call.scale)
    for result in (on_cpu, on_device):
        torch.testing.assert_close(result.float(), expected, rtol=0, atol=bound)

"""NKI kernels as operators of torch, and how attention chooses them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nxdi.errors import UnsupportedError
from nxdi.kernels import nki
from nxdi.kernels.masks import Causal, Chunked, MaskPolicy, SlidingWindow
from nxdi.kernels.neuron import attend as kernels
from nxdi.kernels.neuron.op import load_op, missing_compiler
from nxdi.kernels.ops import AttendCall
from nxdi.kernels.reference.attend import attend_explicit
from nxdi.kernels.registry import choose, named_layers, platform
from tolerances import ATTENTION_FP32

PREFILL, DECODE = "nxdi_nki::attention_prefill", "nxdi_nki::attention_decode"


def call_of(num_queries: int = 12, mask: MaskPolicy | None = None, **changes: Any) -> AttendCall:
    values: dict[str, Any] = {
        "num_kv_heads": 2,
        "group_size": 3,
        "num_queries": num_queries,
        "num_keys": 12,
        "head_dim": 16,
        "value_dim": 16,
        "dtype": torch.float32,
        "mask": mask or Causal(),
        "scale": 0.25,
        "softcap": None,
        "has_sinks": True,
        "aligned": num_queries == 12,
    }
    return AttendCall(**values | changes)


class Attention(nn.Module):
    def __init__(self, call: AttendCall) -> None:
        super().__init__()
        self.call = call

    def forward(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, sinks: Tensor) -> Tensor:
        out: Tensor = choose("attend", self.call).run(q, k, v, allowed, sinks, self.call)
        return out


def inputs_of(call: AttendCall) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    heads, size = call.num_kv_heads, call.head_dim
    keys = torch.arange(call.num_keys)[None]
    return (
        torch.randn(2, heads, call.group_size, call.num_queries, size, generator=generator),
        torch.randn(2, heads, call.num_keys, size, generator=generator),
        torch.randn(2, heads, call.num_keys, size, generator=generator),
        call.mask.allowed(keys[:, -call.num_queries :], keys).expand(2, -1, -1),
        torch.randn(heads, call.group_size, generator=generator),
    )


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (call_of(), PREFILL),
        (call_of(mask=SlidingWindow(5)), PREFILL),
        (call_of(num_queries=1, mask=SlidingWindow(5)), DECODE),
        (call_of(num_queries=3, mask=Chunked(4)), DECODE),
    ],
)
def test_exported_graphs_call_the_kernel_that_serves(call: AttendCall, name: str) -> None:
    inputs = inputs_of(call)
    with platform("neuron") as choices:
        graph = torch.export.export(Attention(call), inputs, strict=False)
    assert [choice.chosen for choice in choices] == [name]
    assert name.replace("::", ".") + ".default" in {str(node.target) for node in graph.graph.nodes}
    result, expected = graph.module()(*inputs), attend_explicit(*inputs, call)
    assert (result - expected).abs().max() <= ATTENTION_FP32 * expected.abs().max()


def test_without_the_sdk_nothing_changes() -> None:
    for call in (call_of(), call_of(num_queries=1)):
        with platform("neuron") as choices:
            assert choose("attend", call).name == "explicit"
        (choice,) = choices
        assert "the Neuron SDK's nki is not installed" in dict(choice.refused)[PREFILL]


def test_a_compiler_is_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_compiler() is not None
    monkeypatch.setattr(nki, "has_compiler", lambda: True)
    assert missing_compiler() is None


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("options", "prefill", "decode"),
    [
        ({}, PREFILL, DECODE),
        ({"attn_kernel_enabled": True}, PREFILL, DECODE),
        ({"attn_kernel_enabled": False}, "explicit", DECODE),
        ({"attn_tkg_nki_kernel_enabled": False}, PREFILL, "explicit"),
        ({"attn_block_tkg_nki_kernel_enabled": False}, PREFILL, "explicit"),
        (
            {"attn_block_tkg_nki_kernel_enabled": False, "attn_tkg_nki_kernel_enabled": True},
            PREFILL,
            DECODE,
        ),
    ],
)
def test_the_choice_follows_the_options(
    options: dict[str, bool], prefill: str, decode: str
) -> None:
    with platform("neuron", options):
        assert choose("attend", call_of()).name == prefill
        assert choose("attend", call_of(num_queries=1)).name == decode
    with platform("cpu", options):
        assert not choose("attend", call_of()).name.startswith("nxdi_nki")


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("option", "call", "reason"),
    [
        ("attn_kernel_enabled", call_of(mask=Chunked(4)), "neither causal nor a sliding window"),
        ("attn_kernel_enabled", call_of(softcap=30.0), "soft-capped"),
        ("attn_tkg_nki_kernel_enabled", call_of(1, head_dim=192), "keys of 192"),
        ("attn_block_tkg_nki_kernel_enabled", call_of(1, group_size=200), "200 queries"),
    ],
)
def test_what_is_asked_for_and_cannot_be_is_an_error(
    option: str, call: AttendCall, reason: str
) -> None:
    layer = nn.ModuleDict({"self_attn": Attention(call)})
    with (
        platform("neuron", {option: True}),
        named_layers(layer),
        pytest.raises(UnsupportedError, match=f"{option}=True, but attend of self_attn") as raised,
    ):
        layer["self_attn"](None, None, None, None, None)
    assert reason in str(raised.value)


def test_asking_for_a_kernel_without_the_sdk_is_an_error() -> None:
    with platform("neuron", {"attn_kernel_enabled": True}):
        assert choose("attend", call_of(num_queries=1)).name == "explicit"
        with pytest.raises(UnsupportedError, match="nki is not installed"):
            choose("attend", call_of())


@pytest.mark.usefixtures("compiler")
def test_a_piece_of_a_prompt_is_neither() -> None:
    call = call_of(num_queries=17, num_keys=40, aligned=False)
    with platform("neuron", {"attn_tkg_nki_kernel_enabled": True}) as choices:
        assert choose("attend", call).name == "explicit"
    (choice,) = choices
    assert "17 queries per row" in dict(choice.refused)[DECODE]


def test_keys_of_another_dtype_are_cast() -> None:
    call = call_of(num_queries=1)
    q, k, v, allowed, sinks = inputs_of(call)
    short = k.bfloat16(), v.bfloat16()
    out = kernels.attend_decode(q, *short, allowed, sinks, call)
    expected = attend_explicit(q, *(x.float() for x in short), allowed, sinks, call)
    assert (out - expected).abs().max() <= ATTENTION_FP32 * expected.abs().max()


@pytest.mark.parametrize("name", ["rmsnorm", "matmul", "attention_output"])
def test_any_kernel_is_an_operator(name: str) -> None:
    op = load_op(name)
    assert op is load_op(name)
    x, w = torch.ones(3, 128), torch.ones(1 if name == "rmsnorm" else 128, 128)
    expected = nki.load_kernels(name).reference(x, w)
    assert torch.equal(op(x, w), expected)
    assert op(x.to("meta"), w.to("meta")).shape == expected.shape


def test_on_a_device_the_kernel_itself_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nki.load_kernels("rmsnorm")
    monkeypatch.setattr(nki, "has_compiler", lambda: True)
    monkeypatch.setattr(nki, "load_kernels", lambda name: module)
    monkeypatch.setattr("nxdi.kernels.neuron.op.NAMESPACE", "nxdi_nki_device")
    load_op.__wrapped__("rmsnorm")
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has_kernel("nxdi_nki_device::rmsnorm", "XLA")
    load_op("rmsnorm")
    assert not has_kernel("nxdi_nki::rmsnorm", "XLA")

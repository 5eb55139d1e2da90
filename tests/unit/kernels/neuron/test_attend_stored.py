"""Decoding from caches in blocks and of float8: the kernel reads them in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nxdi.config import NeuronConfig
from nxdi.errors import UnsupportedError
from nxdi.kernels.masks import Causal
from nxdi.kernels.neuron import attend as _kernels  # noqa: F401  registers its kernels
from nxdi.kernels.registry import platform
from nxdi.modules.attention.attend import Attend
from nxdi.modules.kvcache import ContiguousCache, PagedCache
from nxdi.modules.kvcache.codec import make_codec
from nxdi.modules.kvcache.spec import CacheState
from nxdi.parallel_layers.sharding import plan_heads
from nxdi.types import Phase
from tiny_modules import drawn, layer_context
from tolerances import NKI

KERNEL = "nxdi_nki::attention_decode"
FLOAT8: dict[str, Any] = {"kv_cache_quant": True}
SCALED: dict[str, Any] = {
    "kv_cache_quant": True,
    "kv_quant_config": {
        "direct_cast": False,
        "k_quant_method": "per_head_symmetric",
        "v_quant_method": "per_tensor_symmetric",
    },
}


class Step(nn.Module):
    """Attention of a step to its cache, in 16 bits as on a device."""

    def __init__(self, is_paged: bool, **options: Any) -> None:
        super().__init__()
        config = NeuronConfig(
            backend="neuron", target="trn2", torch_dtype=torch.bfloat16, seq_len=16, **options
        )
        self.layout: Any = ContiguousCache(2, 16, (16, 16))
        if is_paged:
            self.layout = PagedCache(2, 8, 4, (16, 16))
        self.codec = make_codec(config, plan_heads(4, 2, 1), (16, 16))
        for scales in self.codec.parameters():
            scales.data.copy_(0.5 + torch.arange(scales.numel()).view_as(scales))
        self.attend = Attend(Causal(), 0.25)
        self.cache_dtype = config.cache_dtype

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *caches: Tensor) -> Tensor:
        places = torch.tensor([[9], [12]], dtype=torch.int32)
        if q.shape[2] > 1:
            places = torch.arange(q.shape[2], dtype=torch.int32).expand(2, -1)
        phase = Phase.DECODE if q.shape[2] == 1 else Phase.PREFILL
        ctx = layer_context(phase, places, CacheState(*caches), num_slots=16)
        ctx.step.blocks = torch.tensor([[3, 1, 0, -1], [2, 7, 5, 4]], dtype=torch.int32)
        attended = self.codec.decode(ctx.append(self.layout, *self.codec.encode(k, v)))
        return self.attend(q, attended, None, ctx)

    def inputs(self, num_queries: int = 1) -> tuple[Tensor, ...]:
        caches = [
            drawn(*shape, seed=3 + at).to(self.cache_dtype)
            for at, shape in enumerate(self.layout.shapes(2))
        ]
        new = [drawn(2, n, num_queries, 16, seed=n).to(torch.bfloat16) for n in (4, 2, 2)]
        return (*new, *caches)


def used_operators(exported: Any) -> set[str]:
    """The operators that any lowering keeps: those whose results something uses."""
    graph = exported.run_decompositions({}).graph
    for node in reversed(graph.nodes):
        if "_assert_tensor_metadata" in str(node.target):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    return {str(node.target) for node in graph.nodes}


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("is_paged", [False, True])
@pytest.mark.parametrize("options", [{}, FLOAT8, SCALED])
def test_the_cache_is_read_in_place(is_paged: bool, options: dict[str, Any]) -> None:
    step = Step(is_paged, **options)
    inputs = step.inputs()
    expected = step(*inputs)
    with platform("neuron") as choices, torch.no_grad():
        graph = torch.export.export(step, inputs, strict=False)
    (choice,) = choices
    is_stored = is_paged or bool(options)
    assert (choice.op, choice.chosen) == ("attend_stored" if is_stored else "attend", KERNEL)
    (call,) = [node for node in graph.graph.nodes if "attention_decode" in str(node.target)]
    keys = call.args[1].meta["val"]
    assert keys.dtype is step.cache_dtype
    assert not is_paged or tuple(keys.shape) == step.layout.shapes(2)[0]
    assert "aten.index.Tensor" not in used_operators(graph)
    result = graph.module()(*inputs)
    bound = NKI[torch.bfloat16] * float(expected.abs().max())
    torch.testing.assert_close(result, expected, rtol=0, atol=bound)


@pytest.mark.usefixtures("compiler")
def test_a_prompt_is_no_step() -> None:
    step = Step(False, **FLOAT8)
    with platform("neuron", {"attn_tkg_nki_kernel_enabled": True}) as choices:
        step(*step.inputs(num_queries=3))
    made = {choice.op: choice for choice in choices}
    assert made["attend_stored"].chosen == "operators"
    assert "of a prompt" in made["attend_stored"].reason
    assert made["attend"].chosen == "nxdi_nki::attention_prefill"


@pytest.mark.usefixtures("compiler")
def test_options_and_devices_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(True)
    name = "attn_block_tkg_nki_kernel_enabled"
    with platform("neuron", {name: False}) as choices:
        step(*step.inputs())
    assert {choice.chosen for choice in choices} == {"operators", "explicit"}
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "inf2")
    with platform("neuron") as choices:
        step(*step.inputs())
    assert {choice.op: choice.chosen for choice in choices} == {
        "attend_stored": "operators",
        "attend": KERNEL,
    }
    with platform("neuron", {name: True}), pytest.raises(UnsupportedError, match="cannot gather"):
        step(*step.inputs())


def test_elsewhere_nothing_is_noted() -> None:
    step = Step(True)
    with platform("cpu") as choices:
        step(*step.inputs())
    assert {choice.op for choice in choices} == {"attend"}

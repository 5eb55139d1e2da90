"""What is said of kernels that decline and sizes that are padded, and the ranks that are named."""

from __future__ import annotations

from typing import Any

import pytest

from nxdi.kernels.nki import load_kernels
from nxdi.tools.benchmark.stages import Workload
from nxdi.tools.estimate import estimate_model, find_hardware
from nxdi.tools.estimate.kernels import suggest_degrees, with_tp_degree

SMOOTH: dict[str, Any] = {"hf_hidden_size": 512, "hf_intermediate_size": 512, "hf_head_dim": 128}


def problems(app: Any) -> tuple[str, ...]:
    return estimate_model(app, find_hardware("trn2"), Workload(20, 12, 2)).problems


def test_a_size_that_a_kernel_cannot_take_is_named_with_its_remedy(make: Any) -> None:
    assert (
        "kernel matmul declines: hidden size 112 is no multiple of 128; padded to multiples of 128 "
        "it would be served"
    ) in problems(make())


def test_a_dtype_that_a_kernel_cannot_take_has_no_remedy(make: Any) -> None:
    found = [p for p in problems(make(torch_dtype="float32", **SMOOTH)) if "matmul" in p]
    assert found == ["kernel matmul declines: dtype torch.float32 is no float of 16 bits"]


def test_a_norm_is_asked_for_all_rows(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [problem for problem in problems(make()) if "rmsnorm" in problem]
    monkeypatch.setattr(load_kernels("rmsnorm"), "supports", lambda call: f"{call.shape[1]} wide")
    assert [p for p in problems(make()) if "rmsnorm" in p] == ["kernel rmsnorm declines: 64 wide"]


def test_padding_with_zeros_is_named_and_copies_are_not(make: Any) -> None:
    padded = make(tp_degree=3)
    assert any("112 is padded with zeros to 114" in problem for problem in problems(padded))
    copied = make(tp_degree=4, hf_vocab_size=128, **SMOOTH)
    assert problems(copied) == ()


def test_ranks_without_problems_are_found_on_both_sides(make: Any) -> None:
    app = make(tp_degree=3, hf_vocab_size=128, **SMOOTH)
    assert suggest_degrees(app, find_hardware("trn2")) == (2, 4)
    assert suggest_degrees(make(tp_degree=3), find_hardware("trn2")) == ()


def test_the_same_model_on_other_ranks(make: Any) -> None:
    app = make("mixtral", tp_degree=2, quantized=True, batch_size=3)
    other = with_tp_degree(app, 4)
    assert other.neuron_config.tp_degree == 4
    assert other.neuron_config.quantized
    assert other.plan == app.plan
    assert app.neuron_config.tp_degree == 2

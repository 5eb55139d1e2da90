"""The experimental backend for SDKs that compile through torch.compile, over a stand-in for one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from nxdi.errors import ConfigError, UnsupportedError
from nxdi.runtime.backends import neuron_dynamo
from nxdi.runtime.backends.neuron_dynamo import CAPTURE, INDEX_FILE, RUN
from tiny_models import make_app, save_tiny, tiny_hf_model

PLAN: dict[str, Any] = {
    "backend": "neuron-dynamo",
    "target": "trn2",
    "seq_len": 32,
    "max_context_length": 16,
    "batch_size": 2,
}


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """An SDK whose graphs run on this machine; the backends that were given one, in order."""
    given: list[str] = []

    def take(name: str) -> Any:
        def compile_graph(graph: GraphModule, inputs: list[Tensor]) -> GraphModule:
            given.append(name)
            return graph

        return compile_graph

    for part in ("", ".compile", ".compile.backend"):
        name = f"libtorch_neuronx_lite{part}"
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    known = torch._dynamo.backends.registry._BACKENDS
    compilers = torch._dynamo.backends.registry._COMPILER_FNS
    for name in (CAPTURE, RUN):
        monkeypatch.setitem(known, name, None)
        monkeypatch.setitem(compilers, name, take(name))
    monkeypatch.setattr(neuron_dynamo, "_DEVICE", "cpu")
    monkeypatch.setattr(neuron_dynamo, "register_xla_kernels", lambda: None)
    torch._dynamo.reset()
    yield given
    torch._dynamo.reset()


@pytest.mark.parametrize("family", ["llama", pytest.param("mistral", marks=pytest.mark.slow)])
def test_each_graph_is_captured_once_and_computes_the_same(
    family: str, sdk: list[str], tmp_path: Path
) -> None:
    folder = save_tiny(tiny_hf_model(family), tmp_path / "model")
    app = make_app(folder, **PLAN)
    app.compile(tmp_path / "artifact", progress=False)
    num_graphs = len(app.plan.graphs)
    assert sdk == [CAPTURE] * num_graphs
    assert (tmp_path / "artifact" / INDEX_FILE).is_file()
    app.load(tmp_path / "artifact")
    eager = make_app(folder, **{**PLAN, "backend": "eager"})
    eager.compile(tmp_path / "eager", progress=False)
    eager.load(tmp_path / "eager")
    ids = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(1))
    for model in (app, eager):
        model.reset()
    given, expected = app(ids), eager(ids)
    for position in range(12, 20):
        assert torch.allclose(given.logits, expected.logits, atol=1e-5)
        tokens = expected.logits[:, -1].argmax(dim=-1, keepdim=True)
        positions = torch.full((2, 1), position)
        given, expected = (m(tokens, position_ids=positions) for m in (app, eager))
    assert sdk[num_graphs:] == [RUN] * 2


def test_without_the_sdk(tmp_path: Path) -> None:
    app = make_app(save_tiny(tiny_hf_model("llama"), tmp_path / "model"), **PLAN)
    with pytest.raises(UnsupportedError, match=r"libtorch-neuronx-lite .*SDK 2\.32 or later"):
        app.compile(tmp_path / "artifact", progress=False)
    assert not (tmp_path / "artifact").exists()


def test_without_a_target(tmp_path: Path) -> None:
    folder = save_tiny(tiny_hf_model("llama"), tmp_path / "model")
    with pytest.raises(ConfigError, match="needs target; give trn2 or trn3"):
        make_app(folder, **{**PLAN, "target": None})


def test_ranks_are_processes(sdk: list[str], tmp_path: Path) -> None:
    app = make_app(save_tiny(tiny_hf_model("llama"), tmp_path / "model"), **PLAN, tp_degree=2)
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node 2"):
        app.compile(tmp_path / "artifact", progress=False)

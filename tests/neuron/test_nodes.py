"""Ranks on several nodes: each node loads its own part of one artefact."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from neuron.conftest import Artifacts, Folders
from neuron.nxd_double import ContractError, Double
from neuron.support import PROMPTS, eager, neuron_app
from nxdi import env
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.graph.padding import StepBatch, pad_step
from nxdi.parallel_layers.groups import DeviceWorld, SimulatedWorld
from nxdi.types import Phase

ROOT = "10.0.0.1:63423"


def load_node(folder: Path, artifact: Path, start_rank_id: int) -> Any:
    app = neuron_app(folder, tp_degree=4, local_ranks_size=2, start_rank_id=start_rank_id)
    app.load(artifact, skip_warmup=True)
    return app


def test_two_nodes_together_compute_the_step(
    sdk: Double, folders: Folders, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURON_RT_ROOT_COMM_ID", ROOT)
    nodes = [load_node(folders("llama"), artifacts(4), start) for start in (0, 2)]
    loads = sdk.calls_of("NxDModel.load")
    assert [(call["start_rank"], call["local_ranks_size"]) for call in loads] == [(0, 2), (2, 2)]
    assert [node.backend.world() for node in nodes] == [DeviceWorld(4, 0, 2), DeviceWorld(4, 2, 2)]

    spec = nodes[0].plan.of(Phase.PREFILL)[0]
    positions = torch.arange(PROMPTS.shape[1]).expand(PROMPTS.shape)
    batch = StepBatch(Phase.PREFILL, PROMPTS, positions, torch.arange(2))
    models = [node.runner.executables[0]._model for node in nodes]
    ranks = [
        partial(model.graphs[spec.name].run, weights, states, pad_step(batch, spec))
        for model in models
        for weights, states in zip(model.weights, model.states, strict=True)
    ]
    logits = SimulatedWorld(4).run(ranks)[0][0]
    expected = eager(folders("llama"))(PROMPTS).logits
    assert expected is not None
    torch.testing.assert_close(logits, expected[:, 0], rtol=1e-4, atol=1e-4)


def test_a_node_compiles_for_all(
    sdk: Double, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The double cannot run a node alone, so that no test takes a part of the ranks for all."""
    monkeypatch.setenv("NEURON_RT_ROOT_COMM_ID", ROOT)
    app = neuron_app(folders("llama"), tp_degree=4, local_ranks_size=2)
    app.compile(tmp_path / "artifact", progress=False)
    (state,) = sdk.calls_of("NxDParallelState.__init__")
    assert state["world_size"] == state["tensor_model_parallel_size"] == 4
    with pytest.raises(ContractError, match="ranks of the other nodes"):
        app.load(tmp_path / "artifact")


def test_what_the_runtime_is_told(
    sdk: Double, folders: Folders, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.7")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("FI_PROVIDER", "tcp")  # what is set stays
    artifact, before = artifacts(4), dict(os.environ)
    load_node(folders("llama"), artifact, 2)
    added = {name: value for name, value in os.environ.items() if before.get(name) != value}
    assert added == {
        "NEURON_LOGICAL_NC_CONFIG": "2",
        "NEURON_RT_NUM_CORES": "2",
        "NEURON_RT_ROOT_COMM_ID": "10.0.0.7:29501",
        "FI_EFA_USE_DEVICE_RDMA": "1",
        "FI_EFA_FORK_SAFE": "1",
    }


def test_the_root_that_is_named_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.7")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("NEURON_RT_ROOT_COMM_ID", ROOT)
    assert env.neuron_root() == ROOT


@pytest.mark.parametrize(
    "variables", [{}, {"MASTER_ADDR": "10.0.0.7"}, {"MASTER_ADDR": "h", "MASTER_PORT": "a"}]
)
def test_nodes_without_a_root(
    variables: dict[str, str],
    sdk: Double,
    folders: Folders,
    artifacts: Artifacts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="set NEURON_RT_ROOT_COMM_ID=host:port"):
        load_node(folders("llama"), artifacts(4), 2)


def test_more_ranks_than_an_instance_has(folders: Folders) -> None:
    """128 ranks of two cores are two instances of trn2."""
    options = {"tp_degree": 128, "local_ranks_size": 64, "start_rank_id": 64}
    app = neuron_app(folders("llama"), **options)
    assert app.backend.world().local_ranks == tuple(range(64, 128))
    with pytest.raises(UnsupportedError, match="spread them over nodes"):
        neuron_app(folders("llama"), tp_degree=128)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nxdi.config import NeuronConfig
from nxdi.errors import UnsupportedError
from nxdi.runtime.backends.choice import make_backend, resolve_backend
from nxdi.runtime.backends.neuron import probe
from nxdi.runtime.backends.neuron.backend import NeuronBackend

DEVICES = [Path("/dev/neuron0")]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NEURON_PLATFORM_TARGET_OVERRIDE", "NEURON_LOGICAL_NC_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("devices", "problem", "expected"),
    [
        (DEVICES, None, "neuron"),
        (DEVICES, "torch 2.13.0 does not fit", "cpu"),
        ([], None, "cpu"),
        ([], "torch_neuronx cannot be imported", "cpu"),
    ],
)
def test_auto_needs_a_device_and_a_fitting_sdk(
    devices: list[Path], problem: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "neuron_devices", lambda: devices)
    monkeypatch.setattr(probe, "sdk_problem", lambda: problem)
    monkeypatch.setattr(probe, "device_target", lambda: "trn2")
    assert resolve_backend("auto") == expected
    assert make_backend(NeuronConfig()).name == expected


@pytest.mark.parametrize("name", ["cpu", "eager", "neuron"])
def test_a_backend_that_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "neuron_devices", lambda: DEVICES)
    monkeypatch.setattr(probe, "sdk_problem", lambda: None)
    assert resolve_backend(name) == name
    assert make_backend(NeuronConfig(backend=name, target="trn2")).name == name


def test_without_a_device_nothing_is_asked_of_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    def importing() -> str:
        raise AssertionError("imports a package")

    monkeypatch.setattr(probe, "neuron_devices", list)
    monkeypatch.setattr(probe, "sdk_problem", importing)
    assert resolve_backend("auto") == "cpu"


@pytest.mark.parametrize("name", ["auto", "cpu", "eager"])
@pytest.mark.parametrize("start", [0, 2])
def test_several_nodes_need_neuron(name: str, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "neuron_devices", list)
    options: dict[str, Any] = {"tp_degree": 4, "local_ranks_size": 2, "start_rank_id": start}
    with pytest.raises(UnsupportedError, match=r"local_ranks_size=2 of .*'neuron'"):
        make_backend(NeuronConfig(backend=name, **options))
    backend = make_backend(NeuronConfig(backend="neuron", target="trn2", **options))
    assert isinstance(backend, NeuronBackend)
    assert backend.world().local_ranks == (start, start + 1)


def test_strict_kernels_need_a_backend_that_has_some() -> None:
    assert make_backend(NeuronConfig(backend="cpu", strict_kernels=True)).name == "cpu"
    for name in ("eager", "neuron", "neuron-dynamo"):
        with pytest.raises(UnsupportedError, match="strict_kernels=True, but backend="):
            make_backend(NeuronConfig(backend=name, strict_kernels=True, target="trn2"))

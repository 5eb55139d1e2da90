"""`nxdi doctor` on a machine with a device: what it finds, and whether models compute rightly."""

from __future__ import annotations

import importlib

import pytest

from neuron.nxd_double import VERSIONS, Double
from nxdi.cli import main
from nxdi.runtime.backends.neuron import probe
from nxdi.runtime.backends.neuron.run import NeuronRanks
from nxdi.tools.doctor import self_check
from nxdi.tools.doctor.findings import Section, Verdict
from nxdi.tools.doctor.hardware import check_backend
from nxdi.tools.doctor.neuron import check_devices, check_sdk
from nxdi.tools.doctor.tiny_models import MODELS

EXAMINE = importlib.import_module("nxdi.tools.doctor.examine")  # not the function
SOME = ("LlamaForCausalLM", "Gemma3ForCausalLM")


@pytest.fixture(autouse=True)
def device(sdk: Double, monkeypatch: pytest.MonkeyPatch) -> Double:
    monkeypatch.setattr(probe, "device_target", lambda: "trn2")
    return sdk


def test_what_is_found(device: Double) -> None:
    assert check_backend().found == "neuron: 1 Neuron devices and a fitting SDK are here"
    assert check_devices().found == "/dev/neuron0 (trn2)"
    assert check_sdk().found == ", ".join(f"{name} {VERSIONS[name]}" for name in VERSIONS)


def test_models_are_compiled_and_compared(device: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "MODELS", SOME)
    section = self_check.self_check_section()
    names = [*SOME, "LlamaForCausalLM, 2 ranks"]
    assert [finding.name for finding in section.findings] == names
    for finding in section.findings:
        assert finding.verdict is Verdict.OK, finding
        assert finding.found.startswith("neuron: 12 tokens equal")
    states = device.calls_of("NxDParallelState.__init__")
    assert [state["world_size"] for state in states] == [1, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [name for name in MODELS if name not in SOME])
def test_every_architecture(architecture: str) -> None:
    finding = self_check.check_model(architecture)
    assert finding.verdict is Verdict.OK, finding


def test_a_device_that_computes_otherwise_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    original = NeuronRanks.__call__

    def off(self: NeuronRanks, *args: object) -> object:
        outputs = original(self, *args)  # type: ignore[arg-type]  # those of the method
        return {name: x * 1.001 for name, x in outputs.items()}

    monkeypatch.setattr(NeuronRanks, "__call__", off)
    finding = self_check.check_model("LlamaForCausalLM")
    assert finding.verdict is Verdict.FAILED
    assert finding.found.startswith("neuron: tokens differ at steps [], logits by up to 1.0e-03")


def test_the_report_names_a_model_that_does_not_compile(
    device: Double, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(self_check, "MODELS", SOME[1:])
    monkeypatch.setattr(EXAMINE, "software_section", lambda: Section("software", ()))
    device.failing = "[NCC_EVRF009] out of memory"
    assert main(["doctor"]) == 1
    report = capsys.readouterr().out
    assert "failed   model Gemma3ForCausalLM: ArtifactError: neuronx-cc failed on" in report
    assert "[NCC_EVRF009] out of memory" in report
    assert f"neuronx-cc {VERSIONS['neuronx-cc']}" in report
    assert "devices: /dev/neuron0 (trn2)" in report

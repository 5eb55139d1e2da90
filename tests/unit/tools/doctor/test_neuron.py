from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nxdi.tools.doctor import neuron
from nxdi.tools.doctor.findings import Verdict


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that packages can be installed in, for one test."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def install(folder: Path, module: str, source: str) -> None:
    """A package, or a module within packages of one line each."""
    *parents, last = module.split(".")
    for parent in parents:
        folder = folder / parent
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
    (folder / last).mkdir()
    (folder / last / "__init__.py").write_text(source)
    importlib.invalidate_caches()


@pytest.mark.parametrize("name", neuron.PROBES)
def test_a_package_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    finding = neuron.check_sdk_package(name)
    assert (finding.verdict, finding.found) == (Verdict.NOTE, "absent")


@pytest.mark.parametrize("name", neuron.PROBES)
def test_an_empty_placeholder(name: str, packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(neuron.PROBES, name, (f"fake_{name}", "real"))
    install(packages, f"fake_{name}", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    finding = neuron.check_sdk_package(name)
    assert finding.verdict is Verdict.WARNING
    assert f"fake_{name} has no real" in finding.found


def test_a_real_package(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(neuron.PROBES, "nki", ("fake_nki.isa", "nc_matmul"))
    install(packages, "fake_nki.isa", "def nc_matmul(): ...")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    finding = neuron.check_sdk_package("nki")
    assert (finding.verdict, finding.found) == (Verdict.OK, "real")


@pytest.mark.parametrize("source", ["1 / 0", "import no_such_module", "raise OSError('libnrt')"])
def test_a_package_that_cannot_be_imported(
    source: str, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(neuron.PROBES, "nki", ("fake_nki", "nc_matmul"))
    install(packages, "fake_nki", source)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    finding = neuron.check_sdk_package("nki")
    assert finding.verdict is Verdict.WARNING
    assert "Error" in finding.found


def test_no_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neuron.probe, "sdk_problem", lambda: "torch 2.13.0 does not fit")
    finding = neuron.check_sdk()
    assert (finding.verdict, finding.found) == (
        Verdict.NOTE,
        "none that serves: torch 2.13.0 does not fit",
    )


def test_an_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    sdk = neuron.probe.Sdk(None, {"torch": "2.9.0", "neuronx-cc": "2.24"})
    monkeypatch.setattr(neuron.probe, "find_sdk", lambda: sdk)
    finding = neuron.check_sdk()
    assert (finding.verdict, finding.found) == (Verdict.OK, "torch 2.9.0, neuronx-cc 2.24")


@pytest.mark.parametrize(
    ("devices", "problem", "found"),
    [
        ([], None, "none"),
        (["/dev/neuron0", "/dev/neuron1"], "no SDK", "/dev/neuron0, /dev/neuron1"),
        (["/dev/neuron0"], None, "/dev/neuron0 (trn2)"),
    ],
)
def test_devices(
    devices: list[str], problem: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neuron.probe, "neuron_devices", lambda: [Path(name) for name in devices])
    monkeypatch.setattr(neuron.probe, "sdk_problem", lambda: problem)
    monkeypatch.setattr(neuron.probe, "device_target", lambda: "trn2")
    assert neuron.check_devices().found == found

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


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neuron, "neuron_devices", list)
    assert neuron.check_devices().found == "none"
    found = [Path("/dev/neuron0"), Path("/dev/neuron1")]
    monkeypatch.setattr(neuron, "neuron_devices", lambda: found)
    assert neuron.check_devices().found == "/dev/neuron0, /dev/neuron1"

"""What is installed here: the SDK, an empty package of its name, another version, or nothing."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nxdi.errors import ConfigError, UnsupportedError
from nxdi.runtime.backends.neuron import probe

Install = Callable[..., None]
INSTALL = "install torch-neuronx, neuronx-cc and neuronx-distributed of Neuron SDK 2.29 to 2.31"
VERSIONS = {
    "torch": "2.9.1",
    "torch-neuronx": "2.9.0.2.13.26312",
    "neuronx-cc": "2.24.8799",
    "neuronx-distributed": "0.18.27753",
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(distribution, version, module, source)` puts a package where Python finds it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def put(distribution: str, version: str, module: str = "", source: str = "") -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {distribution}\nVersion: {version}\n")
        if module:
            (tmp_path / module).mkdir()
            (tmp_path / module / "__init__.py").write_text(source)
        importlib.invalidate_caches()

    yield put
    for name in set(sys.modules) - before:
        del sys.modules[name]


def install_sdk(install: Install, **versions: str) -> None:
    """An SDK that looks real; keywords name other versions, with _ for -."""
    wanted = {**VERSIONS, **{name.replace("_", "-"): value for name, value in versions.items()}}
    install("torch", wanted["torch"])
    install("neuronx-cc", wanted["neuronx-cc"])
    real = (
        "class xla_impl:\n    trace = None\n"
        "class utils:\n    get_platform_target = staticmethod(lambda: 'trn1')\n"
        "import sys\nsys.modules[__name__ + '.utils'] = utils\n"
    )
    install("torch-neuronx", wanted["torch-neuronx"], "torch_neuronx", real)
    distributed = wanted["neuronx-distributed"]
    install("neuronx-distributed", distributed, "neuronx_distributed", "class NxDModel: ...\n")


def problem() -> str:
    found = probe.sdk_problem()
    assert found is not None
    with pytest.raises(UnsupportedError, match=re.escape(found)):
        probe.find_sdk()
    assert INSTALL in found
    assert "backend='cpu'" in found
    return found


def test_nothing_is_installed() -> None:
    assert "torch_neuronx cannot be imported" in problem()


@pytest.mark.parametrize("torch", ["2.9.0", "2.9.1+cpu"])
@pytest.mark.parametrize("distributed", ["0.18.27753", "0.19.28492"])
def test_a_fitting_sdk(install: Install, torch: str, distributed: str) -> None:
    install_sdk(install, torch=torch, neuronx_distributed=distributed)
    sdk = probe.find_sdk()
    assert probe.sdk_problem() is None
    assert sdk.nxd is sys.modules["neuronx_distributed"]
    fitting = {"torch": torch, "neuronx-distributed": distributed}
    assert sdk.versions == {**VERSIONS, **fitting}


def test_an_empty_placeholder(install: Install) -> None:
    install("torch-neuronx", "0.0.1", "torch_neuronx")
    assert "the installed torch_neuronx is an empty placeholder" in problem()


def test_a_placeholder_beside_a_real_package(install: Install) -> None:
    install("torch-neuronx", "2.9.0", "torch_neuronx", "class xla_impl:\n    trace = None\n")
    install("neuronx-distributed", "0.0.1", "neuronx_distributed")
    found = problem()
    assert "neuronx_distributed is an empty placeholder" in found
    assert "NxDModel" in found


def test_a_package_that_fails_to_import(install: Install) -> None:
    source = "raise OSError('libnrt.so.1: no such file')"
    install("torch-neuronx", "2.9.0", "torch_neuronx", source)
    assert "torch_neuronx cannot be imported (libnrt.so.1: no such file)" in problem()


@pytest.mark.parametrize("torch", ["2.8.0", "2.10.0", "2.13.0+cpu", "2.90.1"])
def test_another_torch(install: Install, torch: str) -> None:
    install_sdk(install, torch=torch)
    assert f"torch {torch} does not fit: this backend needs 2.9;" in problem()


@pytest.mark.parametrize("distributed", ["0.17.26814", "0.20.1", "0.1.8", "1.18.0"])
def test_another_neuronx_distributed(install: Install, distributed: str) -> None:
    install_sdk(install, neuronx_distributed=distributed)
    found = problem()
    assert f"neuronx-distributed {distributed} does not fit" in found
    assert "needs 0.18 or 0.19;" in found


def test_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("neuron0", "neuron10", "neuron_dev", "nvidia0"):
        (tmp_path / name).touch()
    monkeypatch.setattr(probe, "Path", lambda path: tmp_path if path == "/dev" else Path(path))
    assert [path.name for path in probe.neuron_devices()] == ["neuron0", "neuron10"]


def test_the_target_of_a_device(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install_sdk(install)
    monkeypatch.setattr(probe, "neuron_devices", lambda: [Path("/dev/neuron0")])
    assert probe.device_target() == "trn1"


def test_no_device_has_no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "neuron_devices", list)
    with pytest.raises(ConfigError, match="give target, one of inf2, trn1, trn2, trn3"):
        probe.device_target()


def test_a_device_without_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "neuron_devices", lambda: [Path("/dev/neuron0")])
    with pytest.raises(UnsupportedError, match=INSTALL):
        probe.device_target()

"""Is there a Neuron SDK that this backend can use? PyPI has empty packages under its names."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from pathlib import Path
from typing import Any

from nxdi.config.targets import TARGETS
from nxdi.errors import ConfigError, UnsupportedError

_INSTALL = (
    "install torch-neuronx, neuronx-cc and neuronx-distributed of Neuron SDK 2.29 to 2.31 from "
    "the repository that its installation guide names, or use backend='cpu'"
)
_MARKS = {"torch_neuronx": "xla_impl.trace", "neuronx_distributed": "NxDModel"}  # of real ones
_PACKAGES = ("torch", "torch-neuronx", "neuronx-cc", "neuronx-distributed")
_FITTING = {"torch": ("2.9",), "neuronx-distributed": ("0.18", "0.19")}


@dataclass(frozen=True)
class Sdk:
    """A usable SDK: its `neuronx_distributed` module, and versions by package."""

    nxd: Any
    versions: dict[str, str]


def find_sdk() -> Sdk:
    """The SDK that is installed here. Raises: UnsupportedError saying what to install."""
    modules = {name: _real_module(name, mark) for name, mark in _MARKS.items()}
    versions = {package: version_of(package) for package in _PACKAGES}
    for package, fitting in _FITTING.items():
        if not versions[package].startswith(tuple(f"{wanted}." for wanted in fitting)):
            raise UnsupportedError(
                f"{package} {versions[package]} does not fit: this backend needs "
                f"{' or '.join(fitting)}; {_INSTALL}"
            )
    return Sdk(modules["neuronx_distributed"], versions)


def sdk_problem() -> str | None:
    """Why no SDK can be used here; None if one can."""
    try:
        find_sdk()
    except UnsupportedError as error:
        return str(error)
    return None


def neuron_devices() -> list[Path]:
    """The device files of the Neuron driver."""
    return sorted(Path("/dev").glob("neuron[0-9]*"))


def device_target() -> str:
    """The target of the device that is here.

    Raises: ConfigError if there is none; UnsupportedError without the SDK, which knows it.
    """
    if not neuron_devices():
        raise ConfigError(
            f"no Neuron device here to compile for; give target, one of {', '.join(TARGETS)}"
        )
    find_sdk()
    from torch_neuronx.utils import get_platform_target

    return str(get_platform_target())


def version_of(package: str) -> str:
    """The installed version, or "unknown"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _real_module(name: str, mark: str) -> Any:
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a package of another SDK fails in ways of its own
        raise UnsupportedError(f"{name} cannot be imported ({error}); {_INSTALL}") from error
    try:
        attrgetter(mark)(module)
    except AttributeError as error:
        raise UnsupportedError(
            f"the installed {name} is an empty placeholder, or of another SDK (it has no {mark}); "
            f"{_INSTALL}"
        ) from error
    return module

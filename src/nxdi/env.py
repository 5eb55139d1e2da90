"""Every environment variable the library reads; nothing else reads `os.environ`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nxdi.errors import ConfigError


def cache_dir() -> Path:
    """`NXDI_CACHE_DIR`: where compiled graphs, kernels and automatic artefacts are kept.

    Default: `$XDG_CACHE_HOME/nxdi`, or `~/.cache/nxdi`.
    """
    chosen = os.environ.get("NXDI_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "nxdi"


def cxx() -> str | None:
    """`CXX`: the C++ compiler that builds graphs and kernels.

    Default: the first `g++` or `clang++` found.
    """
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def neuron_target() -> str | None:
    """`NEURON_PLATFORM_TARGET_OVERRIDE`: the device to compile for, whatever is installed."""
    return os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE") or None


def neuron_logical_size() -> int | None:
    """`NEURON_LOGICAL_NC_CONFIG`: physical cores per rank; wins over the config."""
    value = os.environ.get("NEURON_LOGICAL_NC_CONFIG")
    if value and not value.isdecimal():
        raise ConfigError(f"NEURON_LOGICAL_NC_CONFIG={value!r} must be a number; use 1 or 2")
    return int(value) if value else None


def neuron_workdir() -> Path | None:
    """`BASE_COMPILE_WORK_DIR`: where the Neuron compiler's files stay; default: removed."""
    value = os.environ.get("BASE_COMPILE_WORK_DIR")
    return Path(value).expanduser() if value else None


def neuron_artifacts() -> Path | None:
    """`NEURON_COMPILED_ARTIFACTS`: the folder of compiled graphs to load, or to compile into."""
    value = os.environ.get("NEURON_COMPILED_ARTIFACTS")
    return Path(value).expanduser() if value else None


def vllm_schedules() -> bool:
    """`DISABLE_NEURON_CUSTOM_SCHEDULER=1`: vLLM cuts prompts into chunks unless told otherwise."""
    return os.environ.get("DISABLE_NEURON_CUSTOM_SCHEDULER", "0") not in ("", "0")


def samples_on_device() -> bool:
    """`NEURON_ON_DEVICE_SAMPLING_DISABLED=1`: vLLM's graphs return logits, and the host samples."""
    return os.environ.get("NEURON_ON_DEVICE_SAMPLING_DISABLED", "0") in ("", "0")


def neuron_root() -> str:
    """Where the ranks of all nodes meet, as "host:port".

    `NEURON_RT_ROOT_COMM_ID`, or on `MASTER_ADDR` the port after `MASTER_PORT`, where torchrun
    itself listens. Raises: ConfigError if neither is set.
    """
    if root := os.environ.get("NEURON_RT_ROOT_COMM_ID"):
        return root
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not address or not port.isdecimal():
        raise ConfigError(
            "only some of the ranks are here, and nothing says where all meet; set "
            "NEURON_RT_ROOT_COMM_ID=host:port to a free port of the first node"
        )
    return f"{address}:{int(port) + 1}"


def set_defaults(values: Mapping[str, str]) -> list[str]:
    """Set the variables that are not set yet, for libraries to read. Returns: their names."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    return added


@contextmanager
def defaults(values: Mapping[str, str]) -> Iterator[None]:
    """`set_defaults` within the block only."""
    added = set_defaults(values)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def torchrun_world() -> tuple[int, int] | None:
    """`RANK` and `WORLD_SIZE` as torchrun sets them, or None outside torchrun."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return None


def snapshot_options() -> dict[str, str] | None:
    """`NXD_INFERENCE_CAPTURE_SNAPSHOT`: write the inputs of graphs to files; unset, empty or 0: no.

    Returns: where it is set, the value of `NXD_INFERENCE_CAPTURE_OUTPUT_PATH` under "OUTPUT_PATH",
    and so for `_OUTPUT_FORMAT`, `_AT_REQUESTS` and `_FOR_TOKENS`, as far as they are set.
    """
    if os.environ.get("NXD_INFERENCE_CAPTURE_SNAPSHOT", "0") in ("", "0"):
        return None
    names = ("OUTPUT_PATH", "OUTPUT_FORMAT", "AT_REQUESTS", "FOR_TOKENS")
    values = {name: os.environ.get(f"NXD_INFERENCE_CAPTURE_{name}") for name in names}
    return {name: value for name, value in values.items() if value}

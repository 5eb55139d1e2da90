"""The Neuron SDK and its devices, as far as they are here.

PyPI carries empty packages under the names of the SDK's, so a package counts only if it has what
the real one has.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import partial

from nxdi.runtime.backends.neuron.probe import neuron_devices
from nxdi.tools.doctor.findings import Finding, Section, Verdict, run_checks

# package -> (module, attribute) that only the real one has
PROBES = {
    "torch_neuronx": ("torch_neuronx", "trace"),
    "torch_xla": ("torch_xla.core.xla_model", "xla_device"),
    "neuronx_distributed": ("neuronx_distributed", "NxDModel"),
    "neuronxcc": ("neuronxcc.nki", "jit"),
    "nki": ("nki.isa", "nc_matmul"),
    "nkilib": ("nkilib.core", "__path__"),
}


def neuron_section() -> Section:
    """Each package of the SDK, and the devices."""
    packages = [partial(check_sdk_package, name) for name in PROBES]
    return run_checks("Neuron", [*packages, check_devices])


def check_sdk_package(name: str) -> Finding:
    """Whether a package is the real one, an empty one of the same name, or not there."""
    if importlib.util.find_spec(name) is None:
        return Finding(name, Verdict.NOTE, "absent")
    module, attribute = PROBES[name]
    try:
        is_real = hasattr(importlib.import_module(module), attribute)
        reason = f"{module} has no {attribute}"
    except Exception as error:  # a package made for another machine raises whatever it likes
        is_real, reason = False, f"{type(error).__name__}: {error}"
    if is_real:
        return Finding(name, Verdict.OK, "real")
    return Finding(
        name,
        Verdict.WARNING,
        f"an empty placeholder, or broken ({reason})",
        f"pip uninstall it, or install the one from the Neuron SDK's own index: {name} on PyPI is "
        "empty",
    )


def check_devices() -> Finding:
    devices = ", ".join(str(path) for path in neuron_devices())
    return Finding("devices", Verdict.NOTE, devices or "none")

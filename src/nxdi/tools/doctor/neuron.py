"""The Neuron SDK and its devices, as far as they are here.

PyPI carries empty packages under the names of the SDK's, so a package counts only if it has what
the real one has.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import partial

from nxdi.runtime.backends.neuron import probe
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
    """Each package of the SDK, whether together they serve, and the devices."""
    packages = [partial(check_sdk_package, name) for name in PROBES]
    return run_checks("Neuron", [*packages, check_sdk, check_devices])


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


def check_sdk() -> Finding:
    """The versions that a compiled model is tied to, or why the neuron backend cannot be used."""
    problem = probe.sdk_problem()
    if problem is not None:
        return Finding("SDK", Verdict.NOTE, f"none that serves: {problem}")
    versions = probe.find_sdk().versions
    return Finding("SDK", Verdict.OK, ", ".join(f"{name} {versions[name]}" for name in versions))


def check_devices() -> Finding:
    """The device files, and what they belong to as far as the SDK is here to say."""
    devices = ", ".join(str(path) for path in probe.neuron_devices())
    if not devices or probe.sdk_problem() is not None:
        return Finding("devices", Verdict.NOTE, devices or "none")
    return Finding("devices", Verdict.NOTE, f"{devices} ({probe.device_target()})")

"""Our NKI kernels. Each module has a kernel, its reference in torch, and `supports`.

The modules import `nki` like any kernel does, so they are imported by `load_kernels` only.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType


def has_compiler() -> bool:
    """Whether the Neuron SDK's `nki` is installed; the package of that name on PyPI is empty."""
    try:
        return hasattr(import_module("nki.isa"), "nc_matmul")
    except ImportError:
        return False


@cache
def load_kernels(name: str) -> ModuleType:
    """The module `nxdi.kernels.nki.<name>`: for the device where the SDK is, else simulated."""
    module = f"{__name__}.{name}"
    if has_compiler():
        return import_module(module)
    from nxdi.kernels.sim import nki_modules

    with nki_modules():
        return import_module(module)

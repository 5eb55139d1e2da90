"""Which backend an option names."""

from __future__ import annotations

from nxdi.runtime.backend import Backend
from nxdi.runtime.backends.cpu import CpuBackend
from nxdi.runtime.backends.eager import EagerBackend


def make_backend(name: str) -> Backend:
    """The backend called `name`, as NeuronConfig has checked it; "auto" is the compiled CPU backend."""
    return EagerBackend() if name == "eager" else CpuBackend()

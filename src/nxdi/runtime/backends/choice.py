"""Which backend an option names."""

from __future__ import annotations

from nxdi.runtime.backend import Backend
from nxdi.runtime.backends.cpu import CpuBackend
from nxdi.runtime.backends.eager import EagerBackend


def make_backend(name: str) -> Backend:
    """The backend called `name`, which NeuronConfig has checked; "auto" is the compiled CPU one."""
    return EagerBackend() if name == "eager" else CpuBackend()

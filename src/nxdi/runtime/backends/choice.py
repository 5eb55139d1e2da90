"""Which backend an option names."""

from __future__ import annotations

from nxdi.config import NeuronConfig
from nxdi.errors import UnsupportedError
from nxdi.runtime.backend import Backend
from nxdi.runtime.backends.cpu import CpuBackend
from nxdi.runtime.backends.eager import EagerBackend
from nxdi.runtime.backends.neuron import probe


def resolve_backend(name: str) -> str:
    """ "auto" is neuron where a device and a fitting SDK are really there, and else cpu."""
    if name != "auto":
        return name
    return "neuron" if probe.neuron_devices() and probe.sdk_problem() is None else "cpu"


def make_backend(config: NeuronConfig) -> Backend:
    """The backend that `config` names.

    Raises: UnsupportedError for several nodes on a backend that has one, or strict_kernels on one
    without kernels for all.
    """
    name = resolve_backend(config.backend)
    if config.strict_kernels and name != "cpu":
        raise UnsupportedError(
            f"strict_kernels=True, but backend={name!r} has kernels for some operations only; "
            "use backend='cpu', or leave it out"
        )
    if name == "neuron":
        from nxdi.runtime.backends.neuron.backend import NeuronBackend

        return NeuronBackend(config)
    if name == "neuron-dynamo":
        from nxdi.runtime.backends.neuron_dynamo import NeuronDynamoBackend

        return NeuronDynamoBackend(config)
    if config.local_ranks_size != config.world_size:
        raise UnsupportedError(
            f"local_ranks_size={config.local_ranks_size} of world_size={config.world_size} ranks "
            "describes several nodes, which only backend='neuron' has; leave it out"
        )
    if name == "eager":
        return EagerBackend(config.tp_degree)
    return CpuBackend(config.tp_degree, config.strict_kernels)

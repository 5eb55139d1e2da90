"""The ranks of a model that this machine's own processors run."""

from __future__ import annotations

from nxdi import env
from nxdi.errors import ConfigError
from nxdi.parallel_layers.groups import SINGLE, DistributedWorld, SimulatedWorld, World


def host_world(num_ranks: int) -> World:
    """One rank here, one per torchrun process, or simulated ranks in this process.

    Raises: ConfigError if torchrun started another number of processes.
    """
    torchrun = env.torchrun_world()
    if torchrun is not None and torchrun[1] > 1:
        if torchrun[1] != num_ranks:
            raise ConfigError(
                f"torchrun started {torchrun[1]} processes for tp_degree={num_ranks}; "
                f"use --nproc-per-node {num_ranks}"
            )
        return DistributedWorld()
    return SINGLE if num_ranks == 1 else SimulatedWorld(num_ranks)

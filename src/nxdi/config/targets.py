"""The Neuron devices that graphs can be compiled for: cores, memory, and what fits on them."""

from __future__ import annotations

from dataclasses import dataclass

from nxdi.errors import ConfigError, UnsupportedError

_GIB = 2**30
# The runtime and the program take memory too; weights and caches may have this much of the rest.
_USABLE_SHARE = 0.9


@dataclass(frozen=True)
class Target:
    """One generation of device.

    cores_per_chip: physical; with logical_nc_config=2 two of them act as one rank.
    memory: bytes of device memory per chip; chips: in the largest single instance.
    """

    name: str
    cores_per_chip: int
    memory: int
    chips: int
    logical_sizes: tuple[int, ...]

    def max_ranks(self, logical_size: int) -> int:
        """Ranks of the largest instance."""
        return self.chips * self.cores_per_chip // logical_size

    def rank_memory(self, logical_size: int) -> int:
        """Bytes of device memory of one rank."""
        return self.memory * logical_size // self.cores_per_chip

    def usable_memory(self, logical_size: int) -> int:
        """Bytes of it that weights and caches may have."""
        return int(self.rank_memory(logical_size) * _USABLE_SHARE)


# Source: the hardware pages of the Neuron documentation. The default logical size comes first.
TARGETS = {
    target.name: target
    for target in (
        Target("inf2", 2, 32 * _GIB, 12, (1,)),
        Target("trn1", 2, 32 * _GIB, 16, (1,)),
        Target("trn2", 8, 96 * _GIB, 16, (2, 1)),
        Target("trn3", 8, 144 * _GIB, 16, (2, 1)),
    )
}


def find_target(name: str) -> Target:
    """Raises: ConfigError naming the known targets."""
    if name not in TARGETS:
        raise ConfigError(f"target={name!r} is not known; use one of {', '.join(TARGETS)}")
    return TARGETS[name]


def choose_logical_size(target: Target, asked: int | None) -> int:
    """Physical cores per rank: what was asked for, or the target's default.

    Raises: ConfigError if the target does not have it.
    """
    if asked is None:
        return target.logical_sizes[0]
    if asked not in target.logical_sizes:
        allowed = " or ".join(map(str, sorted(target.logical_sizes)))
        raise ConfigError(f"logical_nc_config={asked} on {target.name}: use {allowed}")
    return asked


def check_ranks(target: Target, logical_size: int, local_ranks: int) -> None:
    """Raises: UnsupportedError if one instance cannot hold the ranks."""
    most = target.max_ranks(logical_size)
    if local_ranks > most:
        raise UnsupportedError(
            f"{local_ranks} ranks do not fit one {target.name} instance, which has {most} "
            f"(logical_nc_config={logical_size}); lower tp_degree, or spread them over nodes with "
            "local_ranks_size and start_rank_id"
        )


def check_memory(target: Target, logical_size: int, needed: int) -> None:
    """Refuse a model whose weights and caches exceed a rank's memory, before anything is compiled.

    needed: bytes of weights and caches on one rank. Raises: UnsupportedError.
    """
    usable = target.usable_memory(logical_size)
    if needed > usable:
        raise UnsupportedError(
            f"one rank needs {needed / _GIB:.1f} GiB for weights and caches, but a rank of "
            f"{target.name} has {usable / _GIB:.1f} GiB for them; raise tp_degree, or lower "
            "seq_len or batch_size"
        )

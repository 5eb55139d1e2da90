"""What a rank of a target has: arithmetic, memory, links. Every number has its source."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from nxdi.config.targets import Target, check_ranks, choose_logical_size, find_target
from nxdi.kernels.sim.machine import Machine, machine_of, number, sources

HARDWARE_PAGES = "hardware pages of the Neuron documentation"


@dataclass(frozen=True)
class Hardware:
    """One rank: a core, or two that act as one.

    target: cores and memory of a chip; machine: the numbers of one core, those of the kernel
    simulator; logical_size: cores of the rank. Links of a chip in bytes per ns (= GB/s).
    """

    target: Target
    machine: Machine
    logical_size: int
    link_bytes_per_ns: float = number(f"{HARDWARE_PAGES}: NeuronLink, chip to chip")
    collective_us: float = number("Neuron documentation on collectives: memory to memory")

    def flops_per_second(self, dtype: torch.dtype) -> float:
        """Peak of dense products."""
        passes = self.machine.fp32_passes if dtype is torch.float32 else 1
        return self.logical_size * self.machine.peak_tflops * 1e12 / passes

    @property
    def bytes_per_second(self) -> float:
        """Peak between the memory and the rank."""
        return self.logical_size * self.machine.hbm_bytes_per_ns * 1e9

    @property
    def link_bytes_per_second(self) -> float:
        """The rank's share of its chip's links."""
        share = self.logical_size / self.target.cores_per_chip
        return share * self.link_bytes_per_ns * 1e9

    @property
    def memory(self) -> int:
        """Bytes of device memory of the rank."""
        return self.target.rank_memory(self.logical_size)

    @property
    def usable_memory(self) -> int:
        """What of it weights, caches and activations may have."""
        return self.target.usable_memory(self.logical_size)


# GB/s of a chip, from the hardware pages; inf2 has 192 GiB/s.
_LINKS = {"inf2": 206.0, "trn1": 384.0, "trn2": 1280.0, "trn3": 2560.0}
_COLLECTIVE_US = 15.0


def find_hardware(target: str, logical_size: int | None = None, num_ranks: int = 1) -> Hardware:
    """One of `num_ranks` ranks of a target.

    logical_size: physical cores per rank (default: the target's).
    Raises: ConfigError for an unknown target, or a size that it does not have; UnsupportedError
    for more ranks than its largest instance has.
    """
    found = find_target(target)
    size = choose_logical_size(found, logical_size)
    check_ranks(found, size, num_ranks)
    return Hardware(found, machine_of(target), size, _LINKS[target], _COLLECTIVE_US)


def number_sources() -> dict[str, str]:
    """Where each number comes from, by the name of its field."""
    own = {item.name: item.metadata["source"] for item in fields(Hardware) if item.metadata}
    of_core = {f"machine.{name}": source for name, source in sources().items()}
    return {"target": HARDWARE_PAGES, **of_core, **own}

"""Whether the tensors that live at once fit SBUF and PSUM.

A tensor lives from its first write to its last access in program order. The compiler may need
more than that (it pipelines loops), never less.
"""

from __future__ import annotations

from dataclasses import dataclass

from nxdi.errors import KernelError
from nxdi.kernels.sim.machine import Machine
from nxdi.kernels.sim.memory import Allocation, MemoryRegion
from nxdi.kernels.sim.trace import Trace


@dataclass(frozen=True)
class Peak:
    """The most that lived at once: bytes per partition, where, and the largest tensors."""

    bytes_per_partition: int
    line: str
    largest: tuple[Allocation, ...]


def footprint(allocation: Allocation, machine: Machine) -> int:
    """Bytes per partition that a tensor takes: in PSUM whole banks once it is above one."""
    size = allocation.row_bytes
    bank = machine.psum_bank_bytes
    if allocation.buffer is MemoryRegion.psum and size > bank:
        return -(-size // bank) * bank
    return size


def manual_bytes(trace: Trace, buffer: MemoryRegion) -> int:
    """Bytes per partition up to the end of the last tensor with an address, which are kept free."""
    ends = [
        item.address[1] + item.row_bytes
        for item in trace.allocations
        if item.buffer is buffer and item.address is not None
    ]
    return max(ends, default=0)


def peak(trace: Trace, buffer: MemoryRegion, machine: Machine) -> Peak:
    """The largest sum of footprints over the program."""
    begins: dict[int, list[Allocation]] = {}
    ends: dict[int, list[Allocation]] = {}
    for item in trace.allocations:
        if item.buffer is not buffer or item.address is not None:
            continue
        if item.first_write is not None and item.last_access is not None:
            begins.setdefault(item.first_write, []).append(item)
            ends.setdefault(item.last_access, []).append(item)
    live: dict[int, Allocation] = {}
    largest: tuple[Allocation, ...] = ()
    used = manual_bytes(trace, buffer)
    most, at = used, ""
    for instruction in trace.instructions:
        for item in begins.get(instruction.number, ()):
            live[item.number] = item
            used += footprint(item, machine)
        if used > most:
            most, at = used, instruction.line
            ordered = sorted(live.values(), key=lambda item: -item.row_bytes)
            largest = tuple(ordered[:5])
        for item in ends.get(instruction.number, ()):
            del live[item.number]
            used -= footprint(item, machine)
    return Peak(most, at, largest)


def check(trace: Trace, machine: Machine) -> None:
    """Raises: KernelError where tensors do not fit."""
    limits = {
        MemoryRegion.sbuf: ("sbuf-capacity", machine.sbuf_usable_bytes),
        MemoryRegion.psum: ("psum-capacity", machine.psum_bytes),
    }
    for buffer, (rule, limit) in limits.items():
        found = peak(trace, buffer, machine)
        if found.bytes_per_partition > limit:
            tensors = ", ".join(f"{item} ({item.row_bytes} B)" for item in found.largest)
            raise KernelError(
                rule,
                found.line,
                f"{found.bytes_per_partition} bytes per partition of {buffer.value} live at once, "
                f"more than {limit} on {machine.name}: {tensors}; use smaller or fewer tiles",
            )

"""Tensors at manual addresses: they may lie on top of each other.

A write through one makes the bytes of the others there unreadable, and waits until they have been
used.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field

from nxdi.kernels.sim.memory import Allocation, Region, Storage, overlap
from nxdi.kernels.sim.tensor import NkiTensor


def _extent(allocation: Allocation) -> Region:
    """Where a whole tensor lies in its buffer: partitions and bytes."""
    assert allocation.address is not None
    partition, byte = allocation.address
    rows, width = allocation.partitions, allocation.row_bytes
    return (partition, partition + rows, byte, byte + width)


def _place(tensor: NkiTensor) -> Region:
    """Where a view lies in its buffer."""
    allocation = tensor.storage.allocation
    assert allocation.address is not None
    first, last, begin, end = tensor.region()
    partition, byte = allocation.address
    last = min(last, allocation.partitions)
    return (first + partition, last + partition, begin + byte, end + byte)


@dataclass
class Addresses:
    """The tensors of a core that have addresses, and what accessed them."""

    storages: weakref.WeakSet[Storage] = field(default_factory=weakref.WeakSet)
    # Of tensors that are gone too: their accesses are still to be waited for.
    past: dict[int, tuple[Allocation, Iterable[int], Iterable[int]]] = field(default_factory=dict)

    def note(self, storage: Storage) -> None:
        """The tensor is accessed, if it has an address."""
        allocation = storage.allocation
        if allocation.address is not None:
            reads, writes = storage.reads.values(), storage.writes.values()
            self.past[allocation.number] = (allocation, reads, writes)

    def displace(self, tensor: NkiTensor) -> set[int]:
        """A write to `tensor` takes the place of others. Returns: instructions to wait for."""
        mine = tensor.storage.allocation
        after: set[int] = set()
        if mine.address is None:
            return after
        place, own = _place(tensor), _extent(mine)
        for number, (other, reads, writes) in list(self.past.items()):
            theirs = _extent(other)
            if other is mine or other.buffer is not mine.buffer or not overlap(place, theirs):
                continue
            after.update(reads, writes)
            is_covered = own[2] <= theirs[2] and theirs[3] <= own[3]
            if is_covered and own[0] <= theirs[0] and theirs[1] <= own[1]:
                del self.past[number]
        for storage in self.storages:
            if storage.allocation.buffer is mine.buffer and storage is not tensor.storage:
                _destroy(storage, place, str(mine))
        return after


def _destroy(storage: Storage, place: Region, by: str) -> None:
    """The bytes of `storage` at `place` no longer are what was written to them."""
    theirs = _extent(storage.allocation)
    if storage.valid is None or not overlap(place, theirs):
        return
    marks = storage.valid.reshape(storage.allocation.partitions, storage.allocation.row_bytes)
    rows = slice(max(place[0] - theirs[0], 0), place[1] - theirs[0])
    part = marks[rows, max(place[2] - theirs[2], 0) : place[3] - theirs[2]]
    if part.any():
        storage.destroyers.append(by)
    part[...] = 0
    storage.all_valid = False

"""Memory that tensors live in: allocations, their elements, and which bytes have been written."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from math import prod
from typing import Any

import numpy as np

from nxdi.kernels.sim.dtypes import Array, DType, Precise

_WHOLE = {1: 0x01, 2: 0x0101, 4: 0x01010101}
WRITTEN_BY_MATMUL, WRITTEN = 1, 2


class MemoryRegion(Enum):
    """Where a tensor is."""

    sbuf = "sbuf"
    psum = "psum"
    private_hbm = "private_hbm"
    shared_hbm = "shared_hbm"

    @property
    def is_on_chip(self) -> bool:
        return self in (MemoryRegion.sbuf, MemoryRegion.psum)


@dataclass(eq=False)
class Allocation:
    """What the analyses need to know of a tensor after its elements are gone.

    `partitions` x `row_bytes` on chip; in HBM, rows are those of the last dimension.
    """

    number: int
    buffer: MemoryRegion
    name: str
    partitions: int
    row_bytes: int
    line: str
    address: tuple[int, int] | None = None
    first_write: int | None = None
    last_access: int | None = None

    def __str__(self) -> str:
        return self.name or f"{self.buffer.value} tensor of {self.line}"


# A rectangle of an allocation: rows [0, 1) and bytes [2, 3) within each.
Region = tuple[int, int, int, int]


def overlap(one: Region, other: Region) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


@dataclass(eq=False)
class Storage:
    """The elements of an allocation. `elements` and `valid` are None where nothing is computed."""

    allocation: Allocation
    dtype: DType
    elements: Array | None
    valid: Array | None
    # The last instruction that read or wrote a region, per queue of instructions.
    reads: dict[tuple[Region, Any], int] = field(default_factory=dict)
    writes: dict[tuple[Region, Any], int] = field(default_factory=dict)
    # PSUM, per byte: 0, WRITTEN_BY_MATMUL, or WRITTEN by something else.
    writers: Array | None = None
    is_accumulating: bool = False
    # Shared HBM: views accessed since the last barrier with their regions and lines, per core and
    # whether it writes.
    shared: dict[tuple[int, bool], list[tuple[Region, Any, str]]] = field(default_factory=dict)
    all_valid: bool = False
    # Names of the tensors whose writes destroyed bytes of this one.
    destroyers: list[str] = field(default_factory=list)

    @property
    def row_elements(self) -> int:
        return self.allocation.row_bytes // self.dtype.itemsize


def make_storage(
    allocation: Allocation, shape: tuple[int, ...], dtype: DType, numerics: Precise
) -> Storage:
    """Storage of unwritten elements."""
    size = prod(shape)
    is_on_chip = allocation.buffer.is_on_chip
    elements = np.empty(size, numerics.carrier(dtype)) if numerics.computes else None
    tracks = is_on_chip or numerics.computes
    valid = np.zeros(size * dtype.itemsize, np.uint8) if tracks else None
    writers = None
    if allocation.buffer is MemoryRegion.psum:
        writers = np.zeros(size * dtype.itemsize, np.uint8)
    return Storage(allocation, dtype, elements, valid, writers=writers)


def strided(
    flat: Array, shape: tuple[int, ...], steps: tuple[int, ...], offset: int, itemsize: int
) -> Array:
    """A window on `flat` without copying; steps and offset in elements of `itemsize` bytes."""
    strides = tuple(step * itemsize for step in steps)
    return np.ndarray(shape, flat.dtype, flat, offset * itemsize, strides)


def byte_mask(
    mask: Array, itemsize: int, shape: tuple[int, ...], steps: tuple[int, ...], offset: int
) -> Array:
    """The marks of a window on a mask of bytes, one number of `itemsize` bytes per element."""
    typed = mask.view(np.dtype(f"u{itemsize}"))
    return strided(typed, shape, steps, offset, itemsize)


def whole(itemsize: int) -> int:
    """The mark of an element all of whose bytes are written."""
    return _WHOLE[itemsize]

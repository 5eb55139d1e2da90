"""A core that runs a kernel: it checks, records and computes one instruction after another."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import prod
from typing import Any

from nxdi.errors import UnsupportedError
from nxdi.kernels.sim.addresses import Addresses
from nxdi.kernels.sim.dtypes import DType, Precise
from nxdi.kernels.sim.enums import engine
from nxdi.kernels.sim.machine import Machine
from nxdi.kernels.sim.memory import (
    WRITTEN,
    Allocation,
    MemoryRegion,
    Storage,
    make_storage,
    overlap,
)
from nxdi.kernels.sim.registers import VirtualRegister
from nxdi.kernels.sim.rules import require, where
from nxdi.kernels.sim.tensor import NkiTensor
from nxdi.kernels.sim.trace import Instruction, Trace, Work
from nxdi.kernels.sim.validity import check_written, mark_writer, mark_written


@dataclass(eq=False)
class Core:
    """One NeuronCore while it runs a kernel."""

    machine: Machine
    numerics: Precise
    program_id: int = 0
    num_programs: int = 1
    trace: Trace = field(default_factory=lambda: Trace(0))
    # Tensors in nl.shared_hbm, by name or order, which all cores of a launch see.
    shared: dict[Any, Storage] = field(default_factory=dict)
    cores: Any = None
    busy_ns: dict[engine, float] = field(default_factory=dict)
    accumulators: dict[engine, Any] = field(default_factory=dict)
    random_states: dict[engine, Any] = field(default_factory=dict)
    addresses: Addresses = field(default_factory=Addresses)
    accumulating: weakref.WeakSet[Storage] = field(default_factory=weakref.WeakSet)
    num_shared: int = 0

    def allocate(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        buffer: MemoryRegion,
        name: str = "",
        address: tuple[int, int] | None = None,
    ) -> NkiTensor:
        """A new tensor of unwritten elements."""
        split = 1 if buffer.is_on_chip else len(shape) - 1
        rows, row_bytes = prod(shape[:split]), prod(shape[split:]) * dtype.itemsize
        allocation = Allocation(
            len(self.trace.allocations), buffer, name, rows, row_bytes, where(), address
        )
        self.trace.allocations.append(allocation)
        storage = make_storage(allocation, shape, dtype, self.numerics)
        if address is not None:
            self.addresses.storages.add(storage)
        steps = tuple(prod(shape[dim + 1 :]) for dim in range(len(shape)))
        return NkiTensor(storage, dtype, shape, steps)

    def issue(
        self,
        op: str,
        on: engine,
        reads: Sequence[Any],
        writes: Sequence[NkiTensor],
        work: Work,
        *,
        marks: bool = True,
        shares: bool = True,
    ) -> bool:
        """Check and record an instruction. Operands that are no tensors are left aside.

        `marks=False` leaves it to the caller to mark what was written; `shares=False` is for what
        orders the cores itself. Returns: whether the caller is to compute the result.
        """
        sources = [item for item in reads if isinstance(item, NkiTensor)]
        sources += [index for tensor in (*sources, *writes) for index in _index_tensors(tensor)]
        if on is not engine.dma:
            for tensor in (*sources, *writes):
                _check_start(tensor)
        for tensor in sources:
            check_written(tensor)
            tensor.storage.is_accumulating = False
        made = self._record(op, on, sources, writes, work)
        for tensor in writes:
            if marks:
                mark_written(tensor)
            if on is not engine.tensor and tensor.buffer is MemoryRegion.psum:
                mark_writer(tensor, WRITTEN)
        self.busy_ns[on] = self.busy_ns.get(on, 0.0) + work.ns
        if self.cores is not None and shares:
            self._share(sources, writes, made.line)
        return self.numerics.computes

    def _record(
        self,
        op: str,
        on: engine,
        sources: Sequence[NkiTensor],
        writes: Sequence[NkiTensor],
        work: Work,
    ) -> Instruction:
        number = len(self.trace.instructions)
        queue = number if on is engine.dma else on
        after: set[int] = set()
        for tensor in sources:
            region, storage = tensor.region(), tensor.storage
            _wait_for(storage.writes, region, after)
            storage.reads[region, queue] = number
            self.addresses.note(storage)
            storage.allocation.last_access = number
        begins = []
        for tensor in writes:
            region, storage = tensor.region(), tensor.storage
            _wait_for(storage.writes, region, after, replaces=True)
            _wait_for(storage.reads, region, after, replaces=True)
            after |= self.addresses.displace(tensor)
            storage.writes[region, queue] = number
            self.addresses.note(storage)
            if storage.allocation.first_write is None:
                storage.allocation.first_write = number
                begins.append(storage.allocation)
            storage.allocation.last_access = number
        after.discard(number)
        made = Instruction(number, op, on, where(), work, tuple(after), tuple(begins))
        self.trace.instructions.append(made)
        return made

    def _share(self, sources: Sequence[NkiTensor], writes: Sequence[NkiTensor], line: str) -> None:
        for tensor, is_write in [(t, False) for t in sources] + [(t, True) for t in writes]:
            if tensor.buffer is MemoryRegion.shared_hbm:
                self.cores.share(self.program_id, tensor, is_write, line)

    def choose(self, on: engine, *candidates: engine) -> engine:
        """`on`, or for `unknown` the candidate with the least work so far.

        The real compiler's choice is not documented; this one balances.
        """
        if on is engine.unknown:
            return min(candidates, key=lambda item: self.busy_ns.get(item, 0.0))
        require(
            on in candidates,
            "engine-known",
            f"{on} does not have this instruction; use {' or '.join(map(str, candidates))}",
        )
        return on


def _index_tensors(tensor: NkiTensor) -> list[NkiTensor]:
    if tensor.index is None:
        return []
    return [
        item
        for item in (tensor.index.vector, tensor.index.scalar)
        if item is not None and not isinstance(item, VirtualRegister)
    ]


def _wait_for(
    past: dict[tuple[Any, Any], int], region: Any, after: set[int], *, replaces: bool = False
) -> None:
    """Add the instructions of `past` that overlap `region`; drop those that it covers."""
    covered = []
    for key, number in past.items():
        other = key[0]
        if overlap(region, other):
            after.add(number)
            if (
                region[0] <= other[0]
                and other[1] <= region[1]
                and region[2] <= other[2]
                and other[3] <= region[3]
            ):
                covered.append(key)
    if replaces:
        for key in covered:
            del past[key]


def _check_start(tensor: NkiTensor) -> None:
    if not tensor.is_on_chip:
        return
    start, number = tensor.start_partition, tensor.shape[0]
    address = tensor.storage.allocation.address
    start += address[0] if address is not None else 0
    step = 32 if number <= 32 else 64 if number <= 64 else 128
    require(
        start % step == 0 and start + number <= 128,
        "partition-start",
        f"{number} partitions from {start} on; {number} may start at multiples of {step}",
    )


_CURRENT: ContextVar[Core | None] = ContextVar("nxdi_simulated_core", default=None)


def current() -> Core:
    """The core that runs the kernel of the caller.

    Raises: UnsupportedError outside of a kernel.
    """
    core = _CURRENT.get()
    if core is None:
        raise UnsupportedError(
            "instructions run in a kernel; call it through nxdi.kernels.simulate(kernel)(...)"
        )
    return core


def enter(core: Core) -> Any:
    """Make `core` the current one. Returns: what `leave` takes."""
    return _CURRENT.set(core)


def leave(token: Any) -> None:
    _CURRENT.reset(token)

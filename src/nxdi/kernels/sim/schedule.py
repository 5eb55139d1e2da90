"""When each instruction would run: a list schedule over engines, DMA engines and memory.

An engine runs its instructions in program order, DMA transfers start in program order among those
that are ready, and a tensor's memory is free again after its last access. This is a model of
what a good compiler does, not the Neuron compiler.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from nxdi.kernels.sim.capacity import footprint, manual_bytes
from nxdi.kernels.sim.cost import clock_ghz
from nxdi.kernels.sim.enums import engine
from nxdi.kernels.sim.machine import Machine
from nxdi.kernels.sim.memory import Allocation, MemoryRegion
from nxdi.kernels.sim.trace import Instruction, Trace


@dataclass(slots=True)
class Slot:
    """When an instruction ran. `ended` frees its engine; its result is there at `done`."""

    instruction: Instruction
    core: int
    waits: int
    ready: float = 0.0
    start: float = 0.0
    ended: float = 0.0
    done: float = 0.0
    # The slot that kept this one from starting earlier.
    cause: Slot | None = None
    users: list[Slot] = field(default_factory=list)


class _Memory:
    """One buffer of a core; tensors are admitted in the order of their first writes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self.waiting: deque[tuple[Allocation, int]] = deque()
        self.admitted: set[int] = set()
        # Transfers that would start but for a tensor, by its number.
        self.parked: dict[int, Slot] = {}

    def admit(self) -> list[Slot]:
        """Give memory to those that wait. Returns: the transfers that waited for that."""
        woken = []
        while self.waiting and self.used + self.waiting[0][1] <= self.limit:
            allocation, size = self.waiting.popleft()
            self.admitted.add(allocation.number)
            self.used += size
            if allocation.number in self.parked:
                woken.append(self.parked.pop(allocation.number))
        return woken


class _Scheduler:
    """The state of all engines of all cores at one time."""

    def __init__(self, traces: Sequence[Trace], machine: Machine) -> None:
        self.machine = machine
        self.slots = [_slots(trace) for trace in traces]
        self.queues: dict[tuple[int, engine], deque[Slot]] = {}
        self.ready_dma: list[list[tuple[int, Slot]]] = [[] for _ in traces]
        self.free_dma = [machine.dma_engines] * len(traces)
        self.busy: dict[tuple[int, engine], bool] = {}
        self.events: list[tuple[float, int, int, Slot]] = []
        self.meetings: dict[int, dict[int, float]] = {}
        self.freed: dict[tuple[int, int], list[tuple[_Memory, int]]] = {}
        self.memories = [self._memories(trace) for trace in traces]
        self.count = 0
        for slot in (slot for slots in self.slots for slot in slots):
            if slot.instruction.engine is not engine.dma:
                key = slot.core, slot.instruction.engine
                self.queues.setdefault(key, deque()).append(slot)
            elif slot.waits == 0:
                heapq.heappush(self.ready_dma[slot.core], (slot.instruction.number, slot))

    def _memories(self, trace: Trace) -> dict[MemoryRegion, _Memory]:
        memories = {
            MemoryRegion.sbuf: _Memory(self.machine.sbuf_usable_bytes),
            MemoryRegion.psum: _Memory(self.machine.psum_bytes),
        }
        for buffer, memory in memories.items():
            memory.used = manual_bytes(trace, buffer)
        for instruction in trace.instructions:
            for allocation in instruction.begins:
                found = memories.get(allocation.buffer)
                if found is not None and allocation.address is None:
                    assert allocation.last_access is not None
                    size = footprint(allocation, self.machine)
                    found.waiting.append((allocation, size))
                    key = trace.core, allocation.last_access
                    self.freed.setdefault(key, []).append((found, size))
        for memory in memories.values():
            memory.admit()
        return memories

    def run(self) -> None:
        now = 0.0
        self._start_all(now, None)
        while self.events:
            now, kind, _, slot = heapq.heappop(self.events)
            if kind == 0:
                self._release_engine(slot)
            else:
                self._finish(slot)
            if not self.events or self.events[0][0] > now:
                self._start_all(now, slot)

    def _release_engine(self, slot: Slot) -> None:
        on = slot.instruction.engine
        if on is engine.dma:
            self.free_dma[slot.core] += slot.instruction.work.queues
        else:
            self.busy[slot.core, on] = False

    def _finish(self, slot: Slot) -> None:
        for user in slot.users:
            user.waits -= 1
            at = slot.done
            if user.instruction.engine is not slot.instruction.engine:
                on = user.instruction.engine
                at += self.machine.dependency_cycles / clock_ghz(self.machine, on)
            if at >= user.ready:
                user.ready, user.cause = at, slot
            if user.waits == 0 and user.instruction.engine is engine.dma:
                heapq.heappush(self.ready_dma[user.core], (user.instruction.number, user))
        for memory, size in self.freed.get((slot.core, slot.instruction.number), ()):
            memory.used -= size
            for parked in memory.admit():
                heapq.heappush(self.ready_dma[parked.core], (parked.instruction.number, parked))

    def _start_all(self, now: float, cause: Slot | None) -> None:
        """Start what can start; again as long as something did, for cores that meet."""
        before = -1
        while before != self.count:
            before = self.count
            self._start_engines(now, cause)
            for core, ready in enumerate(self.ready_dma):
                self._start_dma(core, ready, now, cause)

    def _start_engines(self, now: float, cause: Slot | None) -> None:
        for key, queue in self.queues.items():
            while queue and not self.busy.get(key) and queue[0].waits == 0:
                slot = queue[0]
                if self._missing(slot) is not None:
                    break
                if slot.instruction.meeting is not None and not self._meets(slot):
                    break
                queue.popleft()
                self.busy[key] = True
                self._start(slot, now, cause)

    def _start_dma(
        self, core: int, ready: list[tuple[int, Slot]], now: float, cause: Slot | None
    ) -> None:
        blocked = []
        while ready and self.free_dma[core] > 0:
            number, slot = heapq.heappop(ready)
            queues = slot.instruction.work.queues
            is_met = slot.instruction.meeting is None or self._meets(slot)
            missing = self._missing(slot)
            if missing is not None:
                memory, allocation = missing
                memory.parked[allocation] = slot
                continue
            if queues > self.free_dma[core] or not is_met:
                blocked.append((number, slot))
                if queues > self.free_dma[core]:
                    break
                continue
            self.free_dma[core] -= queues
            self._start(slot, now, cause)
        for item in blocked:
            heapq.heappush(ready, item)

    def _missing(self, slot: Slot) -> tuple[_Memory, int] | None:
        """A tensor that the instruction begins and that has no memory yet, by its number."""
        for item in slot.instruction.begins:
            memory = self.memories[slot.core].get(item.buffer)
            if memory is not None and item.address is None and item.number not in memory.admitted:
                return memory, item.number
        return None

    def _meets(self, slot: Slot) -> bool:
        """Whether every core has come to the same meeting; notes that this one has."""
        meeting = slot.instruction.meeting
        assert meeting is not None
        arrived = self.meetings.setdefault(meeting, {})
        arrived[slot.core] = slot.ready
        slot.ready = max(arrived.values())
        return len(arrived) == len(self.slots)

    def _efficiency(self, slot: Slot) -> float:
        is_tensor = slot.instruction.engine is engine.tensor
        return self.machine.tensor_efficiency if is_tensor else 1.0

    def _start(self, slot: Slot, now: float, cause: Slot | None) -> None:
        work = slot.instruction.work
        slot.start = max(now, slot.ready)
        if now > slot.ready:
            # Not for want of operands: an engine or memory was freed by what ends now.
            slot.cause = cause
        slot.ended = slot.start + work.ns / self._efficiency(slot)
        slot.done = slot.ended + work.latency_ns
        self.count += 1
        heapq.heappush(self.events, (slot.ended, 0, self.count, slot))
        heapq.heappush(self.events, (slot.done, 1, self.count, slot))


def _slots(trace: Trace) -> list[Slot]:
    slots = [Slot(item, trace.core, len(item.after)) for item in trace.instructions]
    for slot in slots:
        for before in slot.instruction.after:
            slots[before].users.append(slot)
    return slots


def schedule(traces: Sequence[Trace], machine: Machine) -> list[list[Slot]]:
    """The slots of every core's instructions, in program order."""
    scheduler = _Scheduler(traces, machine)
    scheduler.run()
    stuck = [slot for slots in scheduler.slots for slot in slots if slot.done == 0.0]
    assert all(slot.instruction.work.ns == 0 for slot in stuck), stuck[:1]
    return scheduler.slots


def critical_path(slots: Sequence[Slot]) -> list[Slot]:
    """The chain of slots that the end waited for, first to last."""
    if not slots:
        return []
    path: list[Slot] = []
    at: Slot | None = max(slots, key=lambda slot: slot.done)
    while at is not None and len(path) <= len(slots):
        path.append(at)
        at = at.cause
    return path[::-1]

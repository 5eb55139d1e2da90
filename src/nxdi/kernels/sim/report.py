"""What a run of a kernel would cost on the machine: time, load of each engine, and what bounds."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nxdi.kernels.sim import capacity
from nxdi.kernels.sim.enums import engine
from nxdi.kernels.sim.machine import Machine
from nxdi.kernels.sim.memory import MemoryRegion
from nxdi.kernels.sim.schedule import Slot, critical_path, schedule
from nxdi.kernels.sim.trace import Trace, Work


@dataclass(frozen=True)
class Step:
    """One instruction of the critical path."""

    op: str
    engine: str
    line: str
    start_us: float
    end_us: float


@dataclass(frozen=True)
class Report:
    """A prediction. Times in microseconds, of the slowest core; shares of that time.

    `launch_us` is what a kernel costs that does nothing; it is not part of `time_us`.
    """

    machine: str
    num_cores: int
    num_instructions: int
    time_us: float
    launch_us: float
    busy: dict[str, float]
    bound_by: str
    hbm_bytes: int
    dma_gb_per_s: float
    tflops: float
    peak_tflops: float
    memory_gb_per_s: float
    flops_per_byte: float
    roofline_us: float
    sbuf_peak_bytes: int
    psum_peak_bytes: int
    instructions: dict[str, int]
    critical: list[Step]
    advice: list[str]
    slots: list[list[Slot]] = field(repr=False, compare=False)

    def to_json(self) -> str:
        """Everything but the schedule itself."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values.pop("slots")
        values["critical"] = [asdict(step) for step in self.critical]
        return json.dumps(values, indent=2)

    def to_html(self) -> str:
        """A page with the report and a timeline of every engine."""
        from nxdi.kernels.sim.timeline import make_page

        return make_page(self)

    def save(self, path: str | Path) -> None:
        """Write the report as JSON or HTML where the name of the file ends so, else as text."""
        forms = {".json": self.to_json, ".html": self.to_html}
        text = forms.get(Path(path).suffix, self.__str__)()
        Path(path).write_text(text, encoding="utf-8")

    def __str__(self) -> str:
        busy = ", ".join(f"{name} {share:.0%}" for name, share in self.busy.items())
        lines = [
            f"{self.time_us:.1f} us on {self.machine} x {self.num_cores}, bound by {self.bound_by}"
            f" (launch {self.launch_us:.0f} us apart)",
            f"busy: {busy}",
            f"DMA {self.dma_gb_per_s:.1f} GB/s of {self.memory_gb_per_s:.0f}; tensor engine "
            f"{self.tflops:.2f} TFLOP/s of {self.peak_tflops:.1f}",
            f"roofline: {self.flops_per_byte:.1f} FLOP per byte, at best {self.roofline_us:.1f} us",
            f"peak per partition: SBUF {self.sbuf_peak_bytes} B, PSUM {self.psum_peak_bytes} B",
            "critical path:",
        ]
        lines += [
            f"  {step.start_us:9.2f} {step.end_us:9.2f} {step.engine:7} {step.op} {step.line}"
            for step in self.critical[-12:]
        ]
        return "\n".join([*lines, *(f"advice: {text}" for text in self.advice)])


def make_report(traces: Sequence[Trace], machine: Machine) -> Report:
    """Schedule the traces and sum up."""
    slots = schedule(traces, machine)
    every = [slot for core in slots for slot in core]
    time_ns = max((slot.done for slot in every), default=0.0)
    busy = _busy(every, machine, time_ns, len(traces))
    flops = sum(slot.instruction.work.flops for slot in every)
    hbm = sum(slot.instruction.work.hbm_bytes for slot in every)
    rate, peak = machine.dma_rate * len(traces), machine.peak_tflops * len(traces)
    time = max(time_ns, 1e-9)
    return Report(
        machine=machine.name,
        num_cores=len(traces),
        num_instructions=len(every),
        time_us=time_ns / 1e3,
        launch_us=machine.launch_ns / 1e3,
        busy=busy,
        bound_by=max(busy, key=lambda name: busy[name]) if busy else "nothing",
        hbm_bytes=hbm,
        dma_gb_per_s=hbm / time,
        tflops=flops / time / 1e3,
        peak_tflops=peak,
        memory_gb_per_s=rate,
        flops_per_byte=flops / max(hbm, 1),
        roofline_us=max(hbm / rate, flops / peak / 1e3) / 1e3,
        sbuf_peak_bytes=_peak(traces, MemoryRegion.sbuf, machine),
        psum_peak_bytes=_peak(traces, MemoryRegion.psum, machine),
        instructions=dict(Counter(slot.instruction.op for slot in every).most_common()),
        critical=[_step(slot) for slot in critical_path(every)],
        advice=advice(every, machine),
        slots=slots,
    )


def _peak(traces: Sequence[Trace], buffer: MemoryRegion, machine: Machine) -> int:
    return max(capacity.peak(trace, buffer, machine).bytes_per_partition for trace in traces)


def _step(slot: Slot) -> Step:
    item = slot.instruction
    place = item.line.rpartition("/")[2]
    return Step(item.op, item.engine.name, place, slot.start / 1e3, slot.done / 1e3)


def _busy(slots: Sequence[Slot], machine: Machine, time: float, num_cores: int) -> dict[str, float]:
    """Share of the time that each engine works, the mean over the cores and DMA engines."""
    totals: dict[str, float] = defaultdict(float)
    for slot in slots:
        taken = slot.ended - slot.start
        if slot.instruction.engine is engine.dma:
            totals["dma"] += taken * slot.instruction.work.queues / machine.dma_engines
        else:
            totals[slot.instruction.engine.name] += taken
    shares = {name: total / (time * num_cores) for name, total in totals.items() if time}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def advice(slots: Sequence[Slot], machine: Machine) -> list[str]:
    """What costs time without need, with the number of instructions concerned."""
    found: Counter[str] = Counter()
    for slot in slots:
        item = slot.instruction
        work = item.work
        if work.is_32bit_matmul:
            found[f"float32 matmul takes {machine.fp32_passes} passes; use bfloat16"] += 1
        if item.engine is engine.dma and work.queues and work.queues < machine.dma_engines:
            found["DMA uses some of the engines only; give it 128 partitions"] += 1
        if item.engine is engine.dma and work.moved_bytes and _is_slow(item.work, machine):
            found["DMA of short runs; make 2 KiB or more contiguous per partition"] += 1
    return [f"{text} ({number} times)" for text, number in found.most_common()]


def _is_slow(work: Work, machine: Machine) -> bool:
    full = min(work.queues * machine.dma_bytes_per_ns, machine.hbm_bytes_per_ns)
    return work.moved_bytes / work.ns < 0.8 * full

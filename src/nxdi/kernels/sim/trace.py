"""What a kernel did: its instructions in program order, and the tensors they touched."""

from __future__ import annotations

from dataclasses import dataclass, field

from nxdi.kernels.sim.enums import engine
from nxdi.kernels.sim.memory import Allocation


@dataclass(frozen=True)
class Work:
    """What an instruction costs its engine.

    `ns` occupies the engine; `latency_ns` passes before the result is there as well. `flops` counts
    products and sums of the tensor engine, `hbm_bytes` what crosses the memory's interface,
    `queues` the DMA engines that share a transfer.
    """

    ns: float
    latency_ns: float = 0.0
    flops: int = 0
    hbm_bytes: int = 0
    moved_bytes: int = 0
    queues: int = 0
    is_32bit_matmul: bool = False


@dataclass(slots=True)
class Instruction:
    """One instruction of one core. `after` are numbers of instructions it waits for."""

    number: int
    op: str
    engine: engine
    line: str
    work: Work
    after: tuple[int, ...]
    # Tensors that the instruction is the first to write.
    begins: tuple[Allocation, ...] = ()
    # Counts the meetings of the cores; the others of the same number end together.
    meeting: int | None = None


@dataclass
class Trace:
    """The instructions and tensors of one core."""

    core: int
    instructions: list[Instruction] = field(default_factory=list)
    allocations: list[Allocation] = field(default_factory=list)
    meetings: int = 0

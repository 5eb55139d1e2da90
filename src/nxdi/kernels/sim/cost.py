"""Time per instruction, from the published formulas.

The formulas per instruction are those that the `nki.isa` reference of SDK 2.26 gave for gen2,
with the speed-ups of the architecture guides for later generations. Time does not depend on the
number of partitions. N is the number of elements per partition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nxdi.kernels.sim.enums import engine
from nxdi.kernels.sim.machine import Machine
from nxdi.kernels.sim.memory import MemoryRegion
from nxdi.kernels.sim.tensor import NkiTensor
from nxdi.kernels.sim.trace import Work


def clock_ghz(machine: Machine, on: engine) -> float:
    """Cycles per ns of an engine; the synchronization engine runs at the scalar engine's."""
    clocks = {
        engine.tensor: machine.tensor_ghz,
        engine.vector: machine.vector_ghz,
        engine.gpsimd: machine.gpsimd_ghz,
    }
    return clocks.get(on, machine.scalar_ghz)


def cycles(machine: Machine, on: engine, number: float) -> Work:
    """Work of `number` cycles, at least the shortest that an instruction takes."""
    return Work(max(machine.min_cycles, number) / clock_ghz(machine, on))


def elementwise(
    machine: Machine, on: engine, tensors: Sequence[Any], per_element: float = 1.0
) -> Work:
    """One pass over tiles: N cycles times `per_element`, over the engine's rate."""
    tiles = [item for item in tensors if isinstance(item, NkiTensor)]
    number = max(tile.free_size for tile in tiles)
    if on is engine.gpsimd:
        return cycles(machine, on, machine.gpsimd_start_cycles + number * per_element)
    if on is engine.vector:
        return cycles(machine, on, number * per_element / _vector_rate(machine, tiles))
    rate = machine.scalar_16bit_rate if all(t.dtype.itemsize <= 2 for t in tiles) else 1
    return cycles(machine, on, number * per_element / rate)


def _vector_rate(machine: Machine, tiles: Sequence[NkiTensor]) -> int:
    wide = [tile for tile in tiles if tile.free_size > 1]
    is_sbuf = all(tile.buffer is MemoryRegion.sbuf for tile in wide)
    is_short = all(tile.dtype.itemsize <= 2 for tile in wide)
    is_dense = all(tile.is_contiguous() for tile in wide)
    if is_sbuf and is_short and is_dense:
        return machine.vector_16bit_rate
    return machine.vector_other_rate if is_short or (is_sbuf and is_dense) else 1


def two_tiles(machine: Machine, on: engine, tensors: Sequence[NkiTensor]) -> Work:
    """Two tiles read at once: 2 N, or N where one comes from PSUM or both are of 16 bits."""
    if on is engine.gpsimd:
        return elementwise(machine, on, tensors, 2.0)
    number = max(tile.free_size for tile in tensors)
    is_psum = any(tile.buffer is MemoryRegion.psum for tile in tensors)
    is_short = all(tile.dtype.itemsize <= 2 and tile.is_contiguous() for tile in tensors)
    if is_short and not is_psum:
        rate = min(2, machine.vector_16bit_rate)
        return cycles(machine, on, number / rate)
    return cycles(machine, on, number if is_psum else 2 * number)


def with_result(machine: Machine, on: engine, work: Work, reads_out: bool) -> Work:
    """`work` and one more instruction that reads the accumulator registers out."""
    extra = machine.min_cycles / clock_ghz(machine, on) if reads_out else 0.0
    return Work(work.ns + extra)


def matmul(machine: Machine, stationary: int, moving: int, passes: float, flops: int) -> Work:
    """A matmul of `stationary` by `moving` columns: a column per cycle.

    `passes` is 4 for float32, 1 for shorter types. Loading the stationary tile is hidden.
    """
    number = max(min(machine.pe_min_columns, stationary), moving) * passes
    return Work(number / machine.tensor_ghz, flops=flops, is_32bit_matmul=passes > 1)


def transfer(machine: Machine, dst: NkiTensor, src: NkiTensor, slowdown: float = 1.0) -> Work:
    """A DMA: the engines its partitions allow, at the rate its contiguous runs allow."""
    size = dst.size * dst.dtype.itemsize
    on_chip = [tensor for tensor in (dst, src) if tensor.is_on_chip]
    if on_chip:
        partitions = max(tensor.shape[0] for tensor in on_chip)
        queues = -(-partitions // machine.dma_partitions_per_engine)
    else:
        queues = machine.dma_engines
    queues = min(machine.dma_engines, queues)
    payload = min(_run_bytes(dst), _run_bytes(src))
    rate = min(queues * dma_rate(machine, payload), machine.hbm_bytes_per_ns)
    is_hbm = not (dst.is_on_chip and src.is_on_chip)
    both = not dst.is_on_chip and not src.is_on_chip
    return Work(
        size / rate * slowdown,
        latency_ns=machine.dma_latency_ns,
        hbm_bytes=size * (2 if both else 1) if is_hbm else 0,
        moved_bytes=size,
        queues=queues,
    )


def dma_rate(machine: Machine, payload: int) -> float:
    """Bytes per ns of one engine for contiguous runs of `payload` bytes."""

    def share(size: int) -> float:
        return size / (size + machine.dma_half_rate_bytes)

    return machine.dma_bytes_per_ns * min(1.0, share(payload) / share(machine.dma_full_rate_bytes))


def _run_bytes(tensor: NkiTensor) -> int:
    """Bytes that follow each other in memory, within a partition."""
    run, expected = 1, 1
    first = 1 if tensor.is_on_chip else 0
    for number, step in zip(
        reversed(tensor.shape[first:]), reversed(tensor.steps[first:]), strict=True
    ):
        if number > 1 and step != expected:
            break
        run *= number
        expected *= number
    return run * tensor.dtype.itemsize

"""Two cores of a logical one: barriers and exchanges."""

from __future__ import annotations

from typing import Any

from nxdi.kernels.sim import cost
from nxdi.kernels.sim.core import current
from nxdi.kernels.sim.enums import dma_engine as Dma
from nxdi.kernels.sim.enums import engine as Engine
from nxdi.kernels.sim.isa.common import SBUF, same_dtype, same_shape, since
from nxdi.kernels.sim.memory import MemoryRegion
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor
from nxdi.kernels.sim.trace import Work
from nxdi.kernels.sim.values import raw, write_raw


def _pair(what: str, is_ok: bool) -> None:
    since(3, what)
    core = current()
    require(
        core.num_programs == 2 and is_ok,
        "core-pair",
        f"{what} on {core.num_programs} cores: launch kernel[2], and name cores 0 and 1",
    )


def core_barrier(
    data: NkiTensor,
    cores: tuple[int, ...],
    engine: Engine = Engine.gpsimd,
    name: str | None = None,
) -> None:
    """What both cores wrote to `data` in shared HBM is there for both afterwards."""
    core = current()
    _pair("core_barrier", tuple(cores) == (0, 1))
    require(
        data.buffer is MemoryRegion.shared_hbm,
        "core-pair",
        f"{data} is not in nl.shared_hbm, so there is nothing to wait for",
    )
    work = Work(core.machine.dma_latency_ns)
    on = Engine.gpsimd if engine is Engine.unknown else engine
    core.issue("core_barrier", on, [], [data], work, marks=False, shares=False)
    core.cores.meet(core, ("core_barrier", id(data.storage.shared)), None)
    data.storage.shared.clear()


def sendrecv(
    src: NkiTensor,
    dst: NkiTensor,
    send_to_rank: int,
    recv_from_rank: int,
    pipe_id: int,
    dma_engine: Dma = Dma.dma,
    name: str | None = None,
) -> None:
    """`dst` becomes the other core's `src`."""
    core = current()
    other = 1 - core.program_id
    _pair("sendrecv", send_to_rank == other == recv_from_rank)
    same_shape(dst, src)
    same_dtype(dst, src)
    require(
        dst.buffer is SBUF and src.buffer is SBUF,
        "core-pair",
        f"{src} and {dst} must be in SBUF; copy them there",
    )
    most = {4: 1024, 2: 512, 1: 256}[src.dtype.itemsize]
    require(
        dma_engine is Dma.dma or src.free_bytes <= most,
        "sendrecv-size",
        f"{src} has {src.free_bytes} bytes per partition; gpsimd_dma sends {most}, use dma",
    )
    work = cost.transfer(core.machine, dst, src)
    computes = core.issue("sendrecv", Engine.dma, [src], [dst], work)
    sent = raw(src).copy() if computes else None
    received: Any = core.cores.meet(core, ("sendrecv", pipe_id), (src.shape, src.dtype, sent))
    require(
        received[:2] == (dst.shape, dst.dtype),
        "same-shape",
        f"{dst} receives {received[1]} {received[0]} from the other core",
    )
    if computes:
        write_raw(dst, received[2])

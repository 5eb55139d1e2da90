"""Loops, programs and sizes: the part of `nki.language` about control."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nxdi.kernels.sim.core import current
from nxdi.kernels.sim.memory import MemoryRegion
from nxdi.kernels.sim.registers import VirtualRegister, value_of


class NKIObject:
    """Base of the classes that kernels may define."""

    def __init__(self, **kwargs: Any) -> None:
        self.__dict__.update(kwargs)


class _TileSize:
    """`nl.tile_size`: sizes of the machine that the kernel runs on."""

    bn_stats_fmax = 512
    psum_min_align = 4
    sbuf_min_align = 1

    @property
    def pmax(self) -> int:
        return current().machine.partitions

    @property
    def psum_fmax(self) -> int:
        return current().machine.psum_bytes // 4

    @property
    def psum_bank_fmax_bytes(self) -> int:
        return current().machine.psum_bank_bytes

    @property
    def psum_bank_fmax(self) -> int:
        """Float32 elements of a bank."""
        return self.psum_bank_fmax_bytes // 4

    @property
    def gemm_stationary_fmax(self) -> int:
        return current().machine.partitions

    @property
    def gemm_moving_fmax(self) -> int:
        return self.psum_bank_fmax

    def psum_num_banks(self) -> int:
        return current().machine.psum_banks

    def sbuf_fmax_bytes(self) -> int:
        return current().machine.sbuf_usable_bytes

    def sbuf_size_bytes(self) -> int:
        return self.sbuf_fmax_bytes() * self.pmax

    total_available_sbuf_size = sbuf_size_bytes


tile_size = _TileSize()


def affine_range(start: int, stop: int | None = None, step: int = 1) -> range:
    return range(start, stop, step) if stop is not None else range(start)


sequential_range = static_range = affine_range


def dynamic_range(start: Any, stop: Any = None, step: Any = 1) -> Iterator[VirtualRegister]:
    """A loop whose bounds are known at run time; up to NKI 0.6."""
    first, last = (start, stop) if stop is not None else (0, start)
    for at in range(value_of(first), value_of(last), value_of(step)):
        yield VirtualRegister(at)


def fori_loop(lower: Any, upper: Any, body_fun: Callable[[Any], Any], step: Any = 1) -> None:
    """`body_fun(i)` for i from `lower` to `upper`, which may be registers."""
    for at in range(value_of(lower), value_of(upper), value_of(step)):
        body_fun(VirtualRegister(at))


def while_loop(init: VirtualRegister, body_fun: Callable[[Any], Any]) -> None:
    """`body_fun(register)` as long as the register is not zero."""
    while init.value != 0:
        following = body_fun(init)
        if following is not None:
            init.value = value_of(following)


@contextmanager
def no_reorder() -> Iterator[None]:
    """Instructions run in program order, which here they do within an engine anyway."""
    yield


def program_id(axis: int = 0) -> int:
    return current().program_id


def num_programs(axes: int = 0) -> int:
    return current().num_programs


def program_ndim() -> int:
    return int(current().num_programs > 1)


def is_hbm(buffer: Any) -> bool:
    return buffer in (MemoryRegion.private_hbm, MemoryRegion.shared_hbm)


def is_on_chip(buffer: Any) -> bool:
    return isinstance(buffer, MemoryRegion) and buffer.is_on_chip


def is_psum(buffer: Any) -> bool:
    return buffer is MemoryRegion.psum


def is_sbuf(buffer: Any) -> bool:
    return buffer is MemoryRegion.sbuf

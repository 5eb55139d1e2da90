"""Scalar registers: loading, moving and storing integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from nxdi.kernels.sim.core import current
from nxdi.kernels.sim.enums import engine as Engine
from nxdi.kernels.sim.registers import VirtualRegister, value_of
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor
from nxdi.kernels.sim.trace import Work
from nxdi.kernels.sim.values import raw, write


def register_alloc(x: int | None = None) -> VirtualRegister:
    return VirtualRegister(0 if x is None else x)


def register_move(dst: VirtualRegister, src: Any) -> None:
    dst.value = value_of(src)


def _check(tensor: NkiTensor) -> Work:
    require(
        tensor.size == 1 and not tensor.dtype.is_float,
        "register-scalar",
        f"{tensor} must be one element of an integer dtype",
    )
    machine = current().machine
    return Work(machine.dependency_cycles / machine.scalar_ghz)


def register_load(dst: VirtualRegister, src: NkiTensor) -> None:
    """`dst` = the one element of `src`; where nothing is computed, 0."""
    if current().issue("register_load", Engine.sync, [src], [], _check(src)):
        dst.value = int(raw(src).reshape(-1)[0])
    else:
        dst.value = 0


def register_store(dst: NkiTensor, src: VirtualRegister) -> None:
    if current().issue("register_store", Engine.sync, [], [dst], _check(dst)):
        write(dst, np.full(dst.shape, src.value, np.int64))

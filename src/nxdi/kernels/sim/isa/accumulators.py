"""The accumulator registers of the vector and scalar engines, one number per partition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nxdi.kernels.sim.core import current
from nxdi.kernels.sim.dtypes import Array
from nxdi.kernels.sim.enums import engine, reduce_cmd
from nxdi.kernels.sim.isa.common import on_chip
from nxdi.kernels.sim.ops import REDUCTION_START, REDUCTIONS, Op
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor
from nxdi.kernels.sim.values import write


@dataclass
class Registers:
    """What an engine has accumulated, by which operator and which instruction."""

    op: str | None = None
    owner: str = ""
    values: Array | None = None


def check(on: engine, owner: str, op: Op, cmd: reduce_cmd, result: Any, data: NkiTensor) -> None:
    """A reduction is defined, and its result a column. Leaves the state for the next one."""
    require(
        op.name in REDUCTION_START,
        "op-known",
        f"{op} does not accumulate; use nl.add or nl.maximum",
    )
    if isinstance(result, NkiTensor):
        on_chip(result)
        require(
            (result.shape[0], result.free_size) == (data.shape[0], 1),
            "vector-operand",
            f"reduce_res {result} must have shape [{data.shape[0]}, 1]",
        )
    state = current().accumulators.setdefault(on, Registers())
    continues = cmd is reduce_cmd.reduce or (cmd is reduce_cmd.idle and result is not None)
    require(
        not continues or state.op == op.name,
        "accumulator-state",
        f"{cmd} of {op} follows {state.owner or 'nothing'}, which left "
        f"{'nothing' if state.op is None else 'nl.' + state.op}; begin with reset_reduce",
    )
    if cmd is reduce_cmd.idle:
        # The vector engine may use the registers for instructions that do not accumulate.
        if on is engine.vector and result is None:
            state.op, state.owner = None, owner
        return
    state.op, state.owner = op.name, owner


def update(
    on: engine, op: Op, cmd: reduce_cmd, values: Array, result: Any, start: Any = None
) -> None:
    """Reduce `values` [P, N] into the registers, and read them into `result` if there is one."""
    state = current().accumulators[on]
    if cmd is not reduce_cmd.idle:
        neutral = np.full((values.shape[0], 1), REDUCTION_START[op.name], np.float32)
        if cmd is reduce_cmd.load_reduce:
            neutral = np.broadcast_to(np.asarray(start, np.float32), neutral.shape)
        before = state.values if cmd is reduce_cmd.reduce else neutral
        if cmd is not reduce_cmd.reset:
            reduced = REDUCTIONS[op.name](values, axis=1, keepdims=True)
            before = op.compute(before, reduced)
        state.values = before
    if isinstance(result, NkiTensor):
        assert state.values is not None
        write(result, state.values[: result.shape[0]])

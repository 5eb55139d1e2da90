"""The vector engine's selections, with a running maximum; and its exponential on gen4."""

from __future__ import annotations

from typing import Any

import numpy as np

from nxdi.kernels.sim import cost
from nxdi.kernels.sim.core import current
from nxdi.kernels.sim.enums import engine as Engine
from nxdi.kernels.sim.enums import reduce_cmd as Reduce
from nxdi.kernels.sim.isa import accumulators
from nxdi.kernels.sim.isa.common import not_both_psum, same_shape, since, vector
from nxdi.kernels.sim.ops import OPS, as_op
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor
from nxdi.kernels.sim.values import operand, raw_rows, rows, write

FP32_MIN = float(np.finfo(np.float32).min)
_COMPARISONS = ("equal", "less", "less_equal", "greater", "greater_equal")


def range_select(  # noqa: PLR0913  # the signature of NKI
    dst: NkiTensor,
    on_true_tile: NkiTensor,
    comp_op0: Any,
    comp_op1: Any,
    bound0: NkiTensor,
    bound1: NkiTensor,
    reduce_cmd: Reduce = Reduce.reset_reduce,
    reduce_res: NkiTensor | None = None,
    reduce_op: Any = OPS["maximum"],
    range_start: int = 0,
    on_false_value: float = FP32_MIN,
    name: str | None = None,
) -> None:
    """`dst` = the tile where its index is within both bounds, else `on_false_value`."""
    core = current()
    since(3, "range_select")
    ops = [as_op(op, *_COMPARISONS) for op in (comp_op0, comp_op1)]
    total = as_op(reduce_op, "maximum")
    same_shape(dst, on_true_tile)
    for bound in (bound0, bound1):
        vector(bound, on_true_tile)
        require(bound.dtype.name == "float32", "fp32-bounds", f"bound {bound} must be float32")
    last = range_start + on_true_tile.free_size
    require(
        last <= 1 << 24,
        "fp32-bounds",
        f"index {last} is above 2**24, where float32 skips integers; lower range_start and bounds",
    )
    accumulators.check(Engine.vector, "range_select", total, reduce_cmd, reduce_res, on_true_tile)
    work = cost.elementwise(core.machine, Engine.vector, [dst, on_true_tile])
    work = cost.with_result(core.machine, Engine.vector, work, reduce_res is not None)
    writes = [dst] if reduce_res is None else [dst, reduce_res]
    reads = [on_true_tile, bound0, bound1]
    if core.issue("range_select", Engine.vector, reads, writes, work):
        values = rows(on_true_tile)
        index = range_start + np.arange(values.shape[1], dtype=np.float32)[None, :]
        chosen = (ops[0].compute(index, rows(bound0)) != 0) & (
            ops[1].compute(index, rows(bound1)) != 0
        )
        result = np.where(chosen, values, np.float32(on_false_value))
        write(dst, result)
        accumulators.update(Engine.vector, total, reduce_cmd, result, reduce_res)


def select_reduce(  # noqa: PLR0913  # the signature of NKI
    dst: NkiTensor,
    predicate: NkiTensor,
    on_true: NkiTensor,
    on_false: float | NkiTensor,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: Reduce = Reduce.idle,
    reduce_op: Any = OPS["maximum"],
    reverse_pred: bool = False,
    name: str | None = None,
) -> None:
    """`dst` = `on_true` where the predicate is not zero, else `on_false`."""
    core = current()
    total = as_op(reduce_op, "maximum")
    same_shape(dst, predicate, on_true)
    vector(on_false, on_true)
    not_both_psum(predicate, on_true)
    require(
        predicate.dtype.is_integer and predicate.dtype.itemsize <= 2,
        "predicate-dtype",
        f"predicate {predicate} must be an integer of 8 or 16 bits",
    )
    accumulators.check(Engine.vector, "select_reduce", total, reduce_cmd, reduce_res, on_true)
    work = cost.elementwise(core.machine, Engine.vector, [dst, predicate, on_true])
    work = cost.with_result(core.machine, Engine.vector, work, reduce_res is not None)
    writes = [dst] if reduce_res is None else [dst, reduce_res]
    if core.issue("select_reduce", Engine.vector, [predicate, on_true, on_false], writes, work):
        chosen = (raw_rows(predicate) != 0) ^ reverse_pred
        result = np.where(chosen, rows(on_true), operand(on_false))
        write(dst, result)
        accumulators.update(Engine.vector, total, reduce_cmd, result, reduce_res)


def exponential(
    dst: NkiTensor,
    src: NkiTensor,
    max_value: float | NkiTensor = 0.0,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: Reduce = Reduce.idle,
    reduce_init: float | NkiTensor = 0.0,
    name: str | None = None,
) -> None:
    """`dst = exp(src - max_value)` on the vector engine, and a running sum."""
    core = current()
    since(4, "exponential")
    same_shape(dst, src)
    vector(max_value, src)
    vector(reduce_init, src)
    total = OPS["add"]
    accumulators.check(Engine.vector, "exponential", total, reduce_cmd, reduce_res, src)
    work = cost.cycles(core.machine, Engine.vector, src.free_size / 4)
    work = cost.with_result(core.machine, Engine.vector, work, reduce_res is not None)
    writes = [dst] if reduce_res is None else [dst, reduce_res]
    reads = [src, max_value, reduce_init]
    if core.issue("exponential", Engine.vector, reads, writes, work):
        values = np.exp(rows(src) - operand(max_value))
        write(dst, values)
        start = operand(reduce_init)
        accumulators.update(Engine.vector, total, reduce_cmd, values, reduce_res, start)

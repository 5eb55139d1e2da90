"""The vector engine: operators on tiles, reductions and scans."""

from __future__ import annotations

from typing import Any

import numpy as np

from nxdi.kernels.sim import cost
from nxdi.kernels.sim.core import current
from nxdi.kernels.sim.dtypes import Array
from nxdi.kernels.sim.enums import engine as Engine
from nxdi.kernels.sim.enums import reduce_cmd as Reduce
from nxdi.kernels.sim.isa import accumulators
from nxdi.kernels.sim.isa.common import (
    bitwise,
    has_psum,
    not_both_psum,
    not_gpsimd_psum,
    on_chip,
    same_shape,
    vector,
)
from nxdi.kernels.sim.ops import REDUCTIONS, Op, as_op
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor
from nxdi.kernels.sim.values import is_exact_integer, operand, raw_rows, rows, write

_BINARY = ("arithmetic", "bitwise")


def tensor_tensor(
    dst: NkiTensor,
    data1: NkiTensor,
    data2: NkiTensor,
    op: Any,
    engine: Engine = Engine.unknown,
    name: str | None = None,
) -> None:
    """`dst = data1 op data2`; 32-bit integers are exact on GpSimd, the rest is float32."""
    core = current()
    act = as_op(op, *_BINARY)
    same_shape(dst, data1, data2)
    not_both_psum(data1, data2)
    is_bits = bitwise([act], dst, data1, data2)
    is_exact = is_exact_integer(dst.dtype, data1.dtype, data2.dtype) and not is_bits
    is_gpsimd = act.name == "power" or (is_exact and not has_psum(dst, data1, data2))
    if engine is Engine.unknown:
        engine = Engine.gpsimd if is_gpsimd else Engine.vector
    engines = [Engine.gpsimd] if act.name == "power" else [Engine.vector, Engine.gpsimd]
    not_gpsimd_psum(engine, dst, data1, data2)
    on = core.choose(engine, *engines)
    work = cost.two_tiles(core.machine, on, [dst, data1, data2])
    if core.issue("tensor_tensor", on, [data1, data2], [dst], work):
        if is_bits or (is_exact and on is Engine.gpsimd):
            wide = Array if is_bits else np.int64
            one, other = raw_rows(data1), raw_rows(data2)
            if wide is np.int64:
                one, other = one.astype(np.int64), other.astype(np.int64)
            write(dst, act.compute(one, other))
        else:
            write(dst, act.compute(rows(data1), rows(data2)))


def tensor_scalar(  # noqa: PLR0913  # the signature of NKI
    dst: NkiTensor,
    data: NkiTensor,
    op0: Any,
    operand0: float | NkiTensor,
    reverse0: bool = False,
    op1: Any = None,
    operand1: float | NkiTensor | None = None,
    reverse1: bool = False,
    engine: Engine = Engine.unknown,
    name: str | None = None,
) -> None:
    """`dst = (data op0 operand0) op1 operand1`, operands being numbers or columns."""
    core = current()
    ops = [
        as_op(op, "arithmetic", "bitwise", "rsqrt", "abs") for op in (op0, op1) if op is not None
    ]
    operands = [operand0, operand1][: len(ops)]
    same_shape(dst, data)
    for item in operands:
        vector(item, data)
    is_bits = bitwise(ops, dst, data)
    on = _engine_of(ops, is_bits, engine, dst, data)
    work = cost.elementwise(core.machine, on, [dst, data])
    if core.issue("tensor_scalar", on, [data, *operands], [dst], work):
        values = raw_rows(data) if is_bits else rows(data)
        for op, item, is_reversed in zip(ops, operands, (reverse0, reverse1), strict=False):
            values = _apply(op, values, item, is_reversed, is_bits)
        write(dst, values)


def _engine_of(
    ops: list[Op], is_bits: bool, engine: Engine, dst: NkiTensor, data: NkiTensor
) -> Engine:
    """Where a tensor_scalar runs."""
    if engine is Engine.scalar:
        names = tuple(op.name for op in ops)
        require(
            current().machine.generation >= 3
            and names in (("multiply",), ("add",), ("multiply", "add")),
            "scalar-engine-op",
            f"the scalar engine does not compute {names} here; use the vector engine",
        )
    require(
        not is_bits or engine in (Engine.unknown, Engine.vector),
        "engine-known",
        f"{ops} run on the vector engine only, not on {engine}",
    )
    not_gpsimd_psum(engine, dst, data)
    chosen = Engine.vector if engine is Engine.unknown else engine
    return current().choose(chosen, Engine.vector, Engine.scalar, Engine.gpsimd)


def _apply(op: Op, values: Array, item: Any, is_reversed: bool, is_bits: bool) -> Any:
    if op.arity == 1:
        return op.compute(values)
    if is_bits:
        other = raw_rows(item) if isinstance(item, NkiTensor) else values.dtype.type(item)
    else:
        other = operand(item)
    return op.compute(other, values) if is_reversed else op.compute(values, other)


def scalar_tensor_tensor(  # noqa: PLR0913  # the signature of NKI
    dst: NkiTensor,
    data: NkiTensor,
    op0: Any,
    operand0: float | NkiTensor,
    op1: Any,
    operand1: NkiTensor,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> None:
    """`dst = (data op0 operand0) op1 operand1`, operand1 being a tile."""
    core = current()
    first, second = as_op(op0, "arithmetic"), as_op(op1, "arithmetic")
    same_shape(dst, data, operand1)
    vector(operand0, data)
    not_both_psum(data, operand1)
    work = cost.two_tiles(core.machine, Engine.vector, [dst, data, operand1])
    reads = [data, operand0, operand1]
    if core.issue("scalar_tensor_tensor", Engine.vector, reads, [dst], work):
        values = _apply(first, rows(data), operand0, reverse0, False)
        write(dst, _apply(second, values, operand1, reverse1, False))


def tensor_scalar_reduce(  # noqa: PLR0913  # the signature of NKI
    dst: NkiTensor,
    data: NkiTensor,
    op0: Any,
    operand0: float | NkiTensor,
    reduce_op: Any,
    reduce_res: NkiTensor | None = None,
    reverse0: bool = False,
    reduce_cmd: Reduce = Reduce.reset_reduce,
    reduce_init: float | NkiTensor | None = None,
    reduce_res_negate: bool = False,
    name: str | None = None,
) -> None:
    """`dst = data op0 operand0`, and a reduction of it along each partition."""
    core = current()
    first, total = as_op(op0, "arithmetic"), as_op(reduce_op)
    same_shape(dst, data)
    vector(operand0, data)
    vector(reduce_init, data)
    accumulators.check(Engine.vector, "tensor_scalar_reduce", total, reduce_cmd, reduce_res, data)
    work = cost.elementwise(core.machine, Engine.vector, [dst, data])
    work = cost.with_result(core.machine, Engine.vector, work, reduce_res is not None)
    writes = [dst] if reduce_res is None else [dst, reduce_res]
    reads = [data, operand0, reduce_init]
    if core.issue("tensor_scalar_reduce", Engine.vector, reads, writes, work):
        values = _apply(first, rows(data), operand0, reverse0, False)
        start = None if reduce_init is None else operand(reduce_init)
        write(dst, values)
        accumulators.update(Engine.vector, total, reduce_cmd, values, reduce_res, start)
        if reduce_res_negate and reduce_res is not None:
            write(reduce_res, -rows(reduce_res))


def tensor_reduce(
    dst: NkiTensor,
    op: Any,
    data: NkiTensor,
    axis: int | tuple[int, ...] | list[int],
    negate: bool = False,
    keepdims: bool = False,
    name: str | None = None,
) -> None:
    """`dst` = reduction of the last free axes of `data`."""
    core = current()
    total = as_op(op, *REDUCTIONS)
    on_chip(dst, data)
    is_bits = bitwise([total], dst, data)
    axes = sorted(a % data.ndim for a in ([axis] if isinstance(axis, int) else axis))
    require(
        axes == list(range(data.ndim - len(axes), data.ndim)) and 0 not in axes,
        "reduce-axes",
        f"axes {axes} of {data} must be its last free ones; permute or transpose it first",
    )
    kept = int(np.prod(data.shape[1 : data.ndim - len(axes)], dtype=np.int64))
    require(
        (dst.shape[0], dst.free_size) == (data.shape[0], kept),
        "same-shape",
        f"{dst} must have {data.shape[0]} partitions of {kept} elements",
    )
    work = cost.elementwise(core.machine, Engine.vector, [dst, data])
    if core.issue("tensor_reduce", Engine.vector, [data], [dst], work):
        values = (raw_rows(data) if is_bits else rows(data)).reshape(data.shape[0], kept, -1)
        reduced = REDUCTIONS[total.name](values, axis=2)
        write(dst, -reduced if negate else reduced)


def tensor_tensor_scan(  # noqa: PLR0913  # the signature of NKI
    dst: NkiTensor,
    data0: NkiTensor,
    data1: NkiTensor,
    initial: float | NkiTensor,
    op0: Any,
    op1: Any,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> None:
    """`dst[i] = (data0[i] op0 dst[i-1]) op1 data1[i]`, from `initial`."""
    core = current()
    first, second = as_op(op0, "arithmetic"), as_op(op1, "arithmetic")
    same_shape(dst, data0, data1)
    vector(initial, data0)
    not_both_psum(data0, data1)
    work = cost.cycles(core.machine, Engine.vector, 2 * data0.free_size)
    if core.issue("tensor_tensor_scan", Engine.vector, [data0, data1, initial], [dst], work):
        one, other = rows(data0), rows(data1)
        state = np.broadcast_to(operand(initial), (one.shape[0], 1)).astype(np.float32)
        result = np.empty_like(one)
        for at in range(one.shape[1]):
            pair = (state, one[:, at : at + 1]) if reverse0 else (one[:, at : at + 1], state)
            state = first.compute(*pair)
            pair = (other[:, at : at + 1], state)
            state = second.compute(*(pair if reverse1 else pair[::-1]))
            result[:, at : at + 1] = state
        write(dst, result)


def tensor_scalar_cumulative(
    dst: NkiTensor,
    src: NkiTensor,
    op0: Any,
    op1: Any,
    imm0: float | NkiTensor,
    imm1: float | NkiTensor | None = None,
    reduce_cmd: Reduce = Reduce.reset_reduce,
    name: str | None = None,
) -> None:
    """`dst[i] = op1(src[i] op0 imm0, dst[i-1])`: a running reduction, from `imm1` if given."""
    core = current()
    first, total = as_op(op0, "arithmetic"), as_op(op1)
    same_shape(dst, src)
    vector(imm0, src)
    vector(imm1, src)
    accumulators.check(Engine.vector, "tensor_scalar_cumulative", total, reduce_cmd, None, src)
    work = cost.elementwise(core.machine, Engine.vector, [dst, src])
    if core.issue("tensor_scalar_cumulative", Engine.vector, [src, imm0, imm1], [dst], work):
        values = _apply(first, rows(src), imm0, False, False)
        state = core.accumulators[Engine.vector]
        if reduce_cmd is Reduce.reduce and state.values is not None:
            values[:, :1] = total.compute(state.values, values[:, :1])
        elif reduce_cmd is Reduce.load_reduce:
            values[:, :1] = total.compute(operand(imm1), values[:, :1])
        assert isinstance(total.compute, np.ufunc)
        running = total.compute.accumulate(values, axis=1)
        state.values = running[:, -1:].copy()
        write(dst, running)


def reciprocal(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> None:
    """`dst = 1 / data`, eight cycles per element."""
    core = current()
    same_shape(dst, data)
    work = cost.cycles(core.machine, Engine.vector, 8 * data.free_size)
    if core.issue("reciprocal", Engine.vector, [data], [dst], work):
        write(dst, 1 / rows(data))


def bn_stats(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> None:
    """Count, mean and variance times count of the even elements, then of the odd ones."""
    core = current()
    on_chip(dst, data)
    require(
        data.free_size <= 512,
        "bn-stats-size",
        f"{data} has {data.free_size} elements per partition, more than 512; split it",
    )
    require(
        (dst.shape[0], dst.free_size) == (data.shape[0], 6),
        "same-shape",
        f"{dst} must have shape [{data.shape[0]}, 6]",
    )
    work = cost.elementwise(core.machine, Engine.vector, [dst, data])
    if core.issue("bn_stats", Engine.vector, [data], [dst], work):
        parts = []
        for part in (rows(data)[:, 0::2], rows(data)[:, 1::2]):
            count = np.full(part.shape[0], part.shape[1], np.float32)
            is_empty = part.shape[1] == 0
            mean = np.zeros_like(count) if is_empty else part.mean(axis=1)
            spread = np.zeros_like(count) if is_empty else part.var(axis=1) * count
            parts += [count, mean, spread]
        write(dst, np.stack(parts, axis=1))


def bn_aggr(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> None:
    """Mean and variance from triples that `bn_stats` made."""
    core = current()
    on_chip(dst, data)
    require(
        (dst.shape[0], dst.free_size) == (data.shape[0], 2) and data.free_size % 3 == 0,
        "same-shape",
        f"{dst} must have shape [{data.shape[0]}, 2], and {data} triples of bn_stats",
    )
    work = cost.cycles(core.machine, Engine.vector, 13 * data.free_size / 3)
    if core.issue("bn_aggr", Engine.vector, [data], [dst], work):
        triples = rows(data).reshape(data.shape[0], -1, 3)
        count, mean, spread = (triples[:, :, i] for i in range(3))
        total = count.sum(axis=1, keepdims=True)
        center = (count * mean).sum(axis=1, keepdims=True) / total
        variance = (spread + count * (mean - center) ** 2).sum(axis=1, keepdims=True) / total
        write(dst, np.concatenate([center, variance], axis=1))

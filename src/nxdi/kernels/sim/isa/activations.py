"""The scalar engine: activation functions with scale, bias and a running sum."""

from __future__ import annotations

from typing import Any

from nxdi.kernels.sim import cost
from nxdi.kernels.sim.core import current
from nxdi.kernels.sim.dtypes import Array
from nxdi.kernels.sim.enums import engine as Engine
from nxdi.kernels.sim.enums import reduce_cmd as Reduce
from nxdi.kernels.sim.isa import accumulators
from nxdi.kernels.sim.isa.common import same_shape, since, vector
from nxdi.kernels.sim.ops import OPS, Op, as_op
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor
from nxdi.kernels.sim.values import operand, rows, write


def activation(  # noqa: PLR0913  # the signature of NKI
    dst: NkiTensor,
    op: Any,
    data: NkiTensor,
    bias: float | NkiTensor | None = None,
    scale: float | NkiTensor = 1.0,
    reduce_op: Any = None,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: Reduce = Reduce.idle,
    name: str | None = None,
) -> None:
    """`dst = op(data * scale + bias)` in float32, and a sum of it along each partition."""
    core = current()
    act = as_op(op, "activation")
    same_shape(dst, data)
    _check_operands(act, data, bias, scale)
    total = as_op(reduce_op) if reduce_op is not None else OPS["add"]
    require(total.name == "add", "activation-reduce", f"{total} is not nl.add, the only reduction")
    accumulators.check(Engine.scalar, "activation", total, reduce_cmd, reduce_res, data)
    writes = [dst] if reduce_res is None else [dst, reduce_res]
    work = cost.elementwise(core.machine, Engine.scalar, [dst, data])
    work = cost.with_result(core.machine, Engine.scalar, work, reduce_res is not None)
    if core.issue("activation", Engine.scalar, [data, bias, scale], writes, work):
        argument = rows(data) * operand(scale)
        if bias is not None:
            argument = argument + operand(bias)
        _check_range(act, argument)
        values = act.compute(argument)
        # dst first: reduce_res may be a part of it.
        write(dst, values)
        accumulators.update(Engine.scalar, total, reduce_cmd, values, reduce_res)


def _check_operands(act: Op, data: NkiTensor, bias: Any, scale: Any) -> None:
    machine = current().machine
    vector(bias, data)
    vector(scale, data)
    if isinstance(scale, NkiTensor):
        is_ok = scale.dtype.name == "float32"
        require(is_ok, "activation-scale", f"scale {scale} must be float32")
    if bias is not None:
        is_vector = isinstance(bias, NkiTensor)
        is_short = is_vector and bias.dtype.name in ("float32", "float16", "bfloat16")
        is_reciprocal = act.name == "reciprocal" and machine.generation == 2
        is_ok = not is_reciprocal and (is_short or (not is_vector and machine.generation >= 3))
        require(
            is_ok,
            "activation-bias",
            f"bias {bias} of {act} on {machine.name}: give a float vector [P, 1]"
            + (", and none for reciprocal" if is_reciprocal else ""),
        )


def _check_range(act: Op, argument: Array) -> None:
    outside = act.outside(argument)
    require(
        outside == 0,
        "activation-range",
        f"{outside} of {argument.size} inputs of {act} are outside {act.domain}"
        f"{' in magnitude' if act.is_magnitude else ''}; scale or clamp them first",
    )


def activation_reduce(
    dst: NkiTensor,
    op: Any,
    data: NkiTensor,
    reduce_op: Any,
    reduce_res: NkiTensor,
    bias: float | NkiTensor | None = None,
    scale: float | NkiTensor = 1.0,
    name: str | None = None,
) -> None:
    """`activation` with a sum that starts from zero."""
    activation(dst, op, data, bias, scale, reduce_op, reduce_res, Reduce.reset_reduce)


# The operators before the activation, which only have these pairs.
_PAIRS = (
    ("multiply", "add"),
    ("multiply", "subtract"),
    ("multiply", "bypass"),
    ("add", "bypass"),
    ("subtract", "bypass"),
    ("bypass", "bypass"),
)


def activate2(  # noqa: PLR0913  # the signature of NKI
    dst: NkiTensor,
    op: Any,
    data: NkiTensor,
    imm0: float | NkiTensor,
    imm1: float | NkiTensor,
    op0: Any,
    op1: Any,
    relu_param: float | NkiTensor = 0.0,
    reverse0: bool = False,
    reverse1: bool = False,
    reduce_op: Any = None,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: Reduce = Reduce.idle,
    name: str | None = None,
) -> None:
    """`dst = op((data op0 imm0) op1 imm1)`, and a reduction of it along each partition.

    `relu_param` is the slope of nl.prelu below zero.
    """
    core = current()
    since(4, "activate2")
    act, first, second = as_op(op, "activation"), as_op(op0), as_op(op1)
    same_shape(dst, data)
    for item in (imm0, imm1, relu_param):
        vector(item, data)
    require(
        (first.name, second.name) in _PAIRS,
        "activation-operators",
        f"({first}, {second}) is not one of {_PAIRS}",
    )
    total = as_op(reduce_op) if reduce_op is not None else OPS["add"]
    accumulators.check(Engine.scalar, "activate2", total, reduce_cmd, reduce_res, data)
    writes = [dst] if reduce_res is None else [dst, reduce_res]
    work = cost.elementwise(core.machine, Engine.scalar, [dst, data])
    work = cost.with_result(core.machine, Engine.scalar, work, reduce_res is not None)
    if core.issue("activate2", Engine.scalar, [data, imm0, imm1, relu_param], writes, work):
        argument = rows(data)
        for step, item, is_reversed in ((first, imm0, reverse0), (second, imm1, reverse1)):
            other = operand(item)
            pair = (other, argument) if is_reversed and step.name != "bypass" else (argument, other)
            argument = step.compute(*pair)
        _check_range(act, argument)
        slope = (operand(relu_param),) if act.name == "prelu" else ()
        values = act.compute(argument, *slope)
        write(dst, values)
        accumulators.update(Engine.scalar, total, reduce_cmd, values, reduce_res)

"""Checks that several instructions share."""

from __future__ import annotations

from typing import Any

from nxdi.kernels.sim.core import current
from nxdi.kernels.sim.enums import engine
from nxdi.kernels.sim.memory import MemoryRegion
from nxdi.kernels.sim.ops import Op
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor

PSUM, SBUF = MemoryRegion.psum, MemoryRegion.sbuf


def on_chip(*tensors: Any) -> None:
    """Tensors among the arguments are in SBUF or PSUM."""
    for tensor in tensors:
        if isinstance(tensor, NkiTensor):
            require(
                tensor.is_on_chip,
                "on-chip",
                f"{tensor} is in memory; copy it to SBUF with dma_copy first",
            )


def same_shape(dst: NkiTensor, *others: Any) -> None:
    """Partitions and elements per partition match; all are on chip."""
    on_chip(dst, *others)
    for other in others:
        if isinstance(other, NkiTensor):
            require(
                (dst.shape[0], dst.free_size) == (other.shape[0], other.free_size),
                "same-shape",
                f"{dst} and {other} differ in partitions or elements per partition",
            )


def same_dtype(one: NkiTensor, other: NkiTensor) -> None:
    require(one.dtype is other.dtype, "same-dtype", f"{one} and {other} must have one dtype")


def vector(operand: Any, data: NkiTensor) -> None:
    """A tensor operand is a column with a number per partition of `data`."""
    if isinstance(operand, NkiTensor):
        on_chip(operand)
        require(
            (operand.shape[0], operand.free_size) == (data.shape[0], 1),
            "vector-operand",
            f"operand {operand} must have shape [{data.shape[0]}, 1]",
        )


def not_both_psum(one: Any, other: Any) -> None:
    both = [isinstance(item, NkiTensor) and item.buffer is PSUM for item in (one, other)]
    require(
        not all(both),
        "psum-both",
        f"{one} and {other} are both in PSUM; copy one to SBUF with tensor_copy",
    )


def not_gpsimd_psum(on: engine, *tensors: Any) -> None:
    for tensor in tensors:
        is_psum = isinstance(tensor, NkiTensor) and tensor.buffer is PSUM
        require(
            on is not engine.gpsimd or not is_psum,
            "gpsimd-psum",
            f"GpSimd cannot access {tensor}; copy it to SBUF on the vector or scalar engine",
        )


def in_sbuf(rule: str, *tensors: Any) -> None:
    for tensor in tensors:
        if isinstance(tensor, NkiTensor):
            require(tensor.buffer is SBUF, rule, f"{tensor} must be in SBUF; copy it first")


def since(generation: int, what: str) -> None:
    """`what` exists from `generation` on."""
    machine = current().machine
    require(
        machine.generation >= generation,
        "generation",
        f"{what} needs gen{generation} or later, not {machine.name}",
    )


def has_psum(*tensors: Any) -> bool:
    return any(isinstance(item, NkiTensor) and item.buffer is PSUM for item in tensors)


def bitwise(ops: list[Op], *tensors: Any) -> bool:
    """Whether the operators are bitwise, which then all are, on integers."""
    kinds = {op.kind == "bitwise" for op in ops}
    require(len(kinds) == 1, "op-class", f"{ops} mix bitwise and arithmetic operators; use two")
    if True not in kinds:
        return False
    for tensor in tensors:
        if isinstance(tensor, NkiTensor):
            require(
                not tensor.dtype.is_float,
                "op-class",
                f"{ops} work on bits, not on {tensor}; use an integer dtype or view",
            )
    return True

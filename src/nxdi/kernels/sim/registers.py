"""Registers of the engines: integers that a kernel computes at run time."""

from __future__ import annotations

from typing import Any


class VirtualRegister:
    """A 32-bit integer of the device. Arithmetic makes new registers; loops read it."""

    def __init__(self, value: int = 0) -> None:
        self.value = int(value)

    def __add__(self, other: Any) -> VirtualRegister:
        return VirtualRegister(self.value + value_of(other))

    __radd__ = __add__

    def __sub__(self, other: Any) -> VirtualRegister:
        return VirtualRegister(self.value - value_of(other))

    def __mul__(self, other: Any) -> VirtualRegister:
        return VirtualRegister(self.value * value_of(other))

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"register({self.value})"


def value_of(operand: Any) -> int:
    """The integer that a register holds, or that `operand` is."""
    return operand.value if isinstance(operand, VirtualRegister) else int(operand)

"""Choice of a kernel: ordered candidates per operation and platform; each may decline.

The choice is made while a graph is traced (or, in eager mode, while it runs) and can be recorded
for the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from nxdi.errors import UnsupportedError


@dataclass(frozen=True)
class Kernel:
    """One implementation of an operation. `declines(call)` returns why it cannot serve, or None."""

    name: str
    run: Callable[..., Any]
    declines: Callable[[Any], str | None]


@dataclass(frozen=True)
class Choice:
    """What was chosen for one operation, and why the candidates before it were not."""

    op: str
    chosen: str
    refused: tuple[tuple[str, str], ...] = field(default=())


_KERNELS: dict[tuple[str, str], list[Kernel]] = {}
_PLATFORM: ContextVar[str] = ContextVar("nxdi_kernel_platform", default="generic")
_RECORD: ContextVar[set[Choice] | None] = ContextVar("nxdi_kernel_record", default=None)


def register(op: str, platform: str, kernel: Kernel) -> None:
    """Append a candidate; they are asked in the order of registration, "generic" ones last."""
    _KERNELS.setdefault((op, platform), []).append(kernel)


@contextmanager
def platform(name: str) -> Iterator[set[Choice]]:
    """Prefer kernels of platform `name` within the block; yields the set of choices made."""
    record: set[Choice] = set()
    tokens = _PLATFORM.set(name), _RECORD.set(record)
    try:
        yield record
    finally:
        _PLATFORM.reset(tokens[0])
        _RECORD.reset(tokens[1])


def choose(op: str, call: Any) -> Kernel:
    """The first candidate that does not decline `call`.

    Raises: UnsupportedError listing every reason.
    """
    name = _PLATFORM.get()
    candidates = _KERNELS.get((op, name), []) if name != "generic" else []
    refused: list[tuple[str, str]] = []
    for kernel in [*candidates, *_KERNELS.get((op, "generic"), [])]:
        reason = kernel.declines(call)
        if reason is None:
            record = _RECORD.get()
            if record is not None:
                record.add(Choice(op, kernel.name, tuple(refused)))
            return kernel
        refused.append((kernel.name, reason))
    raise UnsupportedError(f"no kernel for {op} {call}: {refused}")

"""Two cores that run one kernel: whose turn it is, where they meet, and what races.

Each core's program is a thread, but only one runs at a time, up to its next meeting, so that a run
is the same every time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nxdi.errors import KernelError
from nxdi.kernels.sim.core import Core
from nxdi.kernels.sim.memory import overlap, strided
from nxdi.kernels.sim.rules import require, where
from nxdi.kernels.sim.tensor import NkiTensor


class Pair:
    """The meeting point of two cores."""

    def __init__(self) -> None:
        self._turn = 0
        self._changed = threading.Condition()
        self._waiting: dict[int, tuple[Any, Any, str]] = {}
        self._received: dict[int, Any] = {}
        self._finished: set[int] = set()

    def wait_for_turn(self, core: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == core)

    def finish(self, core: int) -> None:
        """The core's program has ended."""
        with self._changed:
            self._finished.add(core)
            self._turn = 1 - core
            self._changed.notify_all()

    def meet(self, core: Core, key: Any, gives: Any) -> Any:
        """Wait for the other core to come to the same `key`. Returns: what it gives.

        Raises: KernelError if it ends or waits for something else.
        """
        me, other = core.program_id, 1 - core.program_id
        if other in self._waiting:
            its_key, its_gift, line = self._waiting.pop(other)
            self._mark(core)
            self._agree(key, its_key, line)
            self._received[other] = gives
            return its_gift
        self._mark(core)
        self._waiting[me] = (key, gives, where())
        require(other not in self._finished, "core-deadlock", _ended(other, key))
        with self._changed:
            self._turn = other
            self._changed.notify_all()
        self.wait_for_turn(me)
        require(me in self._received, "core-deadlock", _ended(other, key))
        return self._received.pop(me)

    def _mark(self, core: Core) -> None:
        core.trace.instructions[-1].meeting = core.trace.meetings
        core.trace.meetings += 1

    def _agree(self, key: Any, other: Any, line: str) -> None:
        is_same = key == other
        require(
            is_same,
            "core-deadlock",
            f"this core waits at {key[0]}, the other at {other[0]} of {line}, and they differ in "
            "kind, tensor or pipe_id",
        )

    def share(self, core: int, tensor: NkiTensor, is_write: bool, line: str) -> None:
        """Note an access to shared memory.

        Raises: KernelError if the other core accessed the same bytes since the last barrier, and
        one of the two writes.
        """
        past, region, other = tensor.storage.shared, tensor.region(), 1 - core
        for was_write in (True, False) if is_write else (True,):
            for its_region, its_view, its_line in past.get((other, was_write), ()):
                if overlap(region, its_region) and _overlaps(tensor, its_view):
                    verbs = ["writes" if writes else "reads" for writes in (is_write, was_write)]
                    raise KernelError(
                        "core-race",
                        line,
                        f"core {core} {verbs[0]} {tensor} that core {other} {verbs[1]} at "
                        f"{its_line}; put a core_barrier on it in between",
                    )
        past.setdefault((core, is_write), []).append((region, tensor, line))


def _ended(other: int, key: Any) -> str:
    return f"core {other} ends without coming to this {key[0]}; both cores must meet here"


def _overlaps(one: NkiTensor, other: NkiTensor) -> bool:
    """Whether two views of a storage have an element in common, or may have."""
    if one.index is not None or other.index is not None or one.dtype is not other.dtype:
        return True
    allocation = one.storage.allocation
    marks = np.zeros(allocation.partitions * allocation.row_bytes // one.dtype.itemsize, bool)
    strided(marks, one.shape, one.steps, one.offset, 1)[...] = True
    return bool(strided(marks, other.shape, other.steps, other.offset, 1).any())


def run(cores: Sequence[Core], calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run one program per core. Returns: their results. Raises: the first error of any."""
    if len(cores) == 1:
        return [calls[0]()]
    pair = Pair()
    results: list[Any] = [None] * len(cores)
    failures: list[BaseException] = []

    def work(at: int) -> None:
        pair.wait_for_turn(at)
        try:
            results[at] = calls[at]()
        except BaseException as failure:
            failures.append(failure)
        finally:
            pair.finish(at)

    for core in cores:
        core.cores = pair
    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(cores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results

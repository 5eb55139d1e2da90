"""Worlds of ranks: who takes part in a collective, and how tensors get from one rank to another.

A world offers one primitive, `exchange`: every rank of a group contributes a tensor and receives
all of them in rank order. Reductions and gathers are built on it (`collectives.py`), in rank order,
so that every world gives the same bits. On a CPU, tensor parallelism serves correctness, not speed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from nxdi.errors import ConfigError, NxdiError, ShapeError

T = TypeVar("T")


class World(Protocol):
    """All ranks of one run, as seen from the rank that asks."""

    @property
    def size(self) -> int: ...

    @property
    def local_ranks(self) -> tuple[int, ...]:
        """The ranks that this process runs."""
        ...

    def exchange(self, x: Tensor, ranks: Sequence[int]) -> list[Tensor]:
        """Give `x` to every rank of `ranks` and get theirs, in the order of `ranks`."""
        ...

    def run(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        """Call one function per local rank, each as that rank; results in rank order."""
        ...

    def once(self, function: Callable[[], None]) -> None:
        """Call `function` in one process; the others wait until it is done."""
        ...


_CURRENT: ContextVar[tuple[World, int]] = ContextVar("nxdi_world")


def current() -> tuple[World, int]:
    """The world and the rank of the caller; a single rank outside any `World.run`."""
    return _CURRENT.get((SINGLE, 0))


@contextmanager
def acting_as(world: World, rank: int) -> Iterator[None]:
    """Within the block, collectives of this thread are those of `rank` in `world`."""
    token = _CURRENT.set((world, rank))
    try:
        yield
    finally:
        _CURRENT.reset(token)


class SingleWorld:
    """One rank in one process."""

    size = 1
    local_ranks = (0,)

    def exchange(self, x: Tensor, ranks: Sequence[int]) -> list[Tensor]:
        return [x]

    def run(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        return [function() for function in functions]

    def once(self, function: Callable[[], None]) -> None:
        function()


SINGLE = SingleWorld()


@dataclass(frozen=True)
class DeviceWorld:
    """Ranks that a device runs: one call of this process runs all its local ones.

    Collectives are inside the compiled graphs. size: ranks of all nodes.
    """

    size: int
    start_rank: int = 0
    num_local: int = 1

    @property
    def local_ranks(self) -> tuple[int, ...]:
        return tuple(range(self.start_rank, self.start_rank + self.num_local))

    def exchange(self, x: Tensor, ranks: Sequence[int]) -> list[Tensor]:
        raise ConfigError("a collective ran outside the compiled graphs; run it inside a model")

    def run(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        return [function() for function in functions]

    def once(self, function: Callable[[], None]) -> None:
        function()


class DistributedWorld:
    """One rank per process, connected through torch.distributed (gloo under torchrun)."""

    def __init__(self) -> None:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        self.size = torch.distributed.get_world_size()
        self.local_ranks = (torch.distributed.get_rank(),)

    def exchange(self, x: Tensor, ranks: Sequence[int]) -> list[Tensor]:
        if len(ranks) != self.size:
            raise ConfigError(
                f"collective over ranks {list(ranks)} in a world of {self.size}: under torchrun "
                "every collective spans all processes; start as many processes as tp_degree"
            )
        parts = [torch.empty_like(x) for _ in ranks]
        torch.distributed.all_gather(parts, x.contiguous())
        return parts

    def run(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        with acting_as(self, self.local_ranks[0]):
            return [function() for function in functions]

    def once(self, function: Callable[[], None]) -> None:
        failed = torch.zeros(1)
        try:
            if self.local_ranks[0] == 0:
                function()
        except BaseException:
            failed += 1
            raise
        finally:
            torch.distributed.broadcast(failed, src=0)
        if failed.item():
            raise NxdiError("rank 0 failed in work that it does for all ranks; see its error")


@dataclass
class _Rank:
    """What the baton keeper knows of one simulated rank."""

    posted: tuple[Tensor, tuple[int, ...]] | None = None
    received: list[Tensor] | None = None
    running: bool = False


class _Aborted(Exception):
    """Another rank failed; unwinds this rank's thread without hiding the first error."""


@dataclass
class SimulatedWorld:
    """N ranks as threads of this process, of which exactly one runs at any time.

    A rank runs until it waits in a collective; the next runnable rank then takes the baton. The
    order is fixed, so a run is deterministic, and cores are never oversubscribed: several busy
    OpenMP teams on two cores were measured 20 to 40 times slower.
    """

    size: int
    _ranks: list[_Rank] = field(default_factory=list, repr=False)
    _baton: int | None = field(default=None, repr=False)
    _error: BaseException | None = field(default=None, repr=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"a world needs at least one rank, not {self.size}")

    @property
    def local_ranks(self) -> tuple[int, ...]:
        return tuple(range(self.size))

    def run(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        if len(functions) != self.size:
            raise ConfigError(f"{len(functions)} functions for a world of {self.size} ranks")
        self._ranks = [_Rank(running=True) for _ in functions]
        self._baton, self._error = 0, None
        results: list[T | None] = [None] * self.size

        def work(rank: int) -> None:
            try:
                self._await_baton(rank)
                with acting_as(self, rank):
                    results[rank] = functions[rank]()
            except _Aborted:
                pass
            except BaseException as error:  # raised again in the caller's thread, below
                self._error = self._error or error
            finally:
                with self._changed:
                    self._ranks[rank].running = False
                    self._pass_baton(rank)

        threads = [
            threading.Thread(target=work, args=(rank,), daemon=True) for rank in self.local_ranks
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error
        return results  # type: ignore[return-value]  # every rank finished, so every slot is filled

    def once(self, function: Callable[[], None]) -> None:
        function()

    def exchange(self, x: Tensor, ranks: Sequence[int]) -> list[Tensor]:
        rank = current()[1]
        members = tuple(ranks)
        with self._changed:
            me = self._ranks[rank]
            # A copy: compiled code reuses the memory of x as soon as its own rank goes on.
            me.posted = (x.clone(), members)
            if all(self._is_waiting_for(other, members) for other in members):
                self._deliver(members)
            else:
                self._pass_baton(rank)
                self._changed.wait_for(lambda: self._baton == rank or self._error is not None)
            if self._error is not None:
                raise _Aborted
            assert me.received is not None
            received, me.received = me.received, None
            return received

    def _is_waiting_for(self, rank: int, members: tuple[int, ...]) -> bool:
        posted = self._ranks[rank].posted
        return posted is not None and posted[1] == members

    def _deliver(self, members: tuple[int, ...]) -> None:
        tensors = []
        for rank in members:
            posted = self._ranks[rank].posted
            assert posted is not None
            tensors.append(posted[0])
        if len({(tuple(t.shape), t.dtype) for t in tensors}) > 1:
            shapes = [f"{tuple(t.shape)} {t.dtype}" for t in tensors]
            raise ShapeError(
                f"ranks {list(members)} brought different tensors to one collective: {shapes}"
            )
        for rank in members:
            self._ranks[rank].posted = None
            self._ranks[rank].received = list(tensors)

    def _await_baton(self, rank: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._baton == rank or self._error is not None)
            if self._error is not None:
                raise _Aborted

    def _pass_baton(self, rank: int) -> None:
        """Hand the baton to the next rank that can run; call with the lock held."""
        for step in range(1, self.size + 1):
            other = (rank + step) % self.size
            state = self._ranks[other]
            if state.running and state.posted is None:
                self._baton = other
                break
        else:
            self._baton = None
            waiting = [r for r, state in enumerate(self._ranks) if state.posted is not None]
            if waiting and self._error is None:
                self._error = ConfigError(
                    f"ranks {waiting} wait in a collective that the others never join: "
                    "every rank must call the same collectives in the same order"
                )
        self._changed.notify_all()

"""Calls whose results are asked for later: run when they are, or at once beside the caller."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from nxdi.config import NeuronConfig

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Pending(Protocol[T_co]):
    """A call that was started; it ends with either of these."""

    def result(self) -> T_co: ...
    def drop(self) -> None: ...


class Starter(Protocol):
    """Where calls are started; a next one only when the one before has ended."""

    def start(self, call: Callable[[], T]) -> Pending[T]: ...


class InTurn:
    """Runs a call when its result is asked for, and one that is dropped never."""

    def start(self, call: Callable[[], T]) -> Pending[T]:
        return _Later(call)


class Ahead:
    """Runs a call at once, in a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nxdi-step")

    def start(self, call: Callable[[], T]) -> Pending[T]:
        random_state = torch.get_rng_state()
        return _Running(self._thread.submit(call), random_state)


def make_starter(config: NeuronConfig) -> Starter:
    """As `async_mode` says."""
    return Ahead() if config.async_mode else InTurn()


class _Later(Generic[T]):
    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call

    def result(self) -> T:
        return self._call()

    def drop(self) -> None:
        """There is nothing to undo."""


class _Running(Generic[T]):
    def __init__(self, future: Future[T], random_state: Tensor) -> None:
        self._future, self._random_state = future, random_state

    def result(self) -> T:
        try:
            return self._future.result()
        finally:
            wait([self._future])  # nothing runs on behind a caller who is interrupted

    def drop(self) -> None:
        """Wait for the end, be it an error; random numbers that were drawn will be drawn again."""
        wait([self._future])
        torch.set_rng_state(self._random_state)

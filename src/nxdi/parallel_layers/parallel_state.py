"""Which group of ranks the modules built now belong to; names follow neuronx_distributed.

A built module keeps its group. A collective that forward calls without one means all ranks: those
of the world that runs the step, or those the graph is compiled for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from nxdi.errors import ConfigError
from nxdi.parallel_layers import groups


@dataclass(frozen=True)
class ProcessGroup:
    """One way to cut all ranks into groups of equal size; `mesh` lists every group."""

    mesh: tuple[tuple[int, ...], ...]

    def size(self) -> int:
        """Ranks in each group."""
        return len(self.mesh[0])

    @property
    def flat_mesh(self) -> list[int]:
        return [rank for group in self.mesh for rank in group]


_TENSOR_PARALLEL: ContextVar[ProcessGroup | None] = ContextVar("nxdi_tensor_parallel", default=None)


def _group_of(tp_degree: int) -> ProcessGroup:
    if tp_degree < 1:
        raise ConfigError(f"tensor_model_parallel_size must be at least 1, not {tp_degree}")
    return ProcessGroup((tuple(range(tp_degree)),))


@contextmanager
def tensor_parallel(tp_degree: int) -> Iterator[None]:
    """Modules built within the block are shards of `tp_degree` ranks, and so are graphs."""
    token = _TENSOR_PARALLEL.set(_group_of(tp_degree))
    try:
        yield
    finally:
        _TENSOR_PARALLEL.reset(token)


def initialize_model_parallel(tensor_model_parallel_size: int = 1) -> None:
    """Set the tensor-parallel group for modules built from now on in this thread."""
    _TENSOR_PARALLEL.set(_group_of(tensor_model_parallel_size))


def destroy_model_parallel() -> None:
    """Forget the tensor-parallel group."""
    _TENSOR_PARALLEL.set(None)


def model_parallel_is_initialized() -> bool:
    return _TENSOR_PARALLEL.get() is not None


def get_tensor_model_parallel_group() -> ProcessGroup:
    return _TENSOR_PARALLEL.get() or _group_of(groups.current()[0].size)


def get_tensor_model_parallel_size() -> int:
    return get_tensor_model_parallel_group().size()


def get_tensor_model_parallel_rank() -> int:
    """The rank that is running now; 0 while a model is built or traced."""
    return groups.current()[1]

"""Calls of our NKI kernels, drawn with a seed and compared with the reference."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from types import ModuleType
from typing import Any

import torch

from nxdi.kernels import lint, simulate
from nxdi.kernels.sim.run import Kernel

GENERATIONS = ("gen2", "gen3", "gen4")


@dataclass(frozen=True)
class Drawn:
    """One call: what it is decided on, its tensors, its other arguments, what it may be off by."""

    call: Any
    tensors: tuple[torch.Tensor | None, ...]
    tolerance: float
    options: dict[str, Any] = field(default_factory=dict)


def normal(
    random: Random, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> torch.Tensor:
    """Normal numbers that only `random` decides."""
    generator = torch.Generator().manual_seed(random.getrandbits(32))
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def check_drawn(
    module: ModuleType,
    kernel: Kernel,
    draw: Callable[[Random], Drawn],
    target: str,
    num_calls: int = 50,
) -> None:
    """Each call is supported, and equals the reference."""
    random = Random(target)
    for _ in range(num_calls):
        drawn = draw(random)
        assert module.supports(drawn.call) is None, drawn.call
        result = simulate(kernel, target=target)(*drawn.tensors, **drawn.options)
        expected = module.reference(*drawn.tensors, **drawn.options)
        check_equal(result, expected, drawn)


def check_equal(result: Any, expected: Any, drawn: Drawn) -> None:
    if isinstance(expected, tuple):
        for one, other in zip(result, expected, strict=True):
            check_equal(one, other, drawn)
        return
    assert result.shape == expected.shape, drawn.call
    size = expected.double().abs().max()
    error = (result.double() - expected.double()).abs().max()
    assert error <= drawn.tolerance * size, (drawn.call, error / size)


def functions_of(module: ModuleType) -> list[Any]:
    """The kernels of a module and the functions that run in them."""
    return [
        item
        for item in vars(module).values()
        if (isinstance(item, Kernel) and item.function.__module__ == module.__name__)
        or (inspect.isfunction(item) and item.__module__ == module.__name__ and _is_nki(item))
    ]


def _is_nki(function: Any) -> bool:
    return function.__name__ not in ("reference", "supports")


def check_portable(module: ModuleType) -> None:
    """No function of the module has what compilers up to NKI 0.6 reject."""
    functions = functions_of(module)
    assert functions
    assert [finding for function in functions for finding in lint(function)] == []

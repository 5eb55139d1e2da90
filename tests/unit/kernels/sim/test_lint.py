from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nxdi.kernels.sim.lint import lint
from sim_kernels import nl, stored

TABLE = {"a": 1}


def keyword_only(x: Any, *, eps: float) -> None: ...
def variable(*x: Any) -> None: ...
def listed(x: Any, sizes: Any = [1, 2]) -> None: ...  # noqa: B006  # what the rule is about


def identity(x: Any) -> Any:
    return x if x is not None else 0


def generator(x: Any) -> Any:
    return sum(i for i in range(x))


def unpacks(x: Any) -> None:
    for i, j in x:
        nl.copy(i, j)


def raises(x: Any) -> None:
    raise ValueError(x)


def imports(x: Any) -> Any:
    import math

    return math.sqrt(x)


def numbers(x: Any) -> Any:
    return {1: x}


def outer(x: Any) -> Any:
    return x + TABLE["a"]


def classes(x: Any) -> Any:
    class Config:
        size = 1

    return Config.size + x


def dynamic(x: Any) -> None:
    for i in nl.dynamic_range(x):
        nl.copy(i)


def walrus(x: Any) -> Any:
    return (y := x) + y


BROKEN: dict[str, Callable[..., Any]] = {
    "parameters": keyword_only,
    "list-argument": listed,
    "identity": identity,
    "generator": generator,
    "for-target": unpacks,
    "exception": raises,
    "import": imports,
    "dict-key": numbers,
    "mutable-global": outer,
    "class": classes,
    "dynamic-range": dynamic,
    "walrus": walrus,
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_construct_is_found(rule: str) -> None:
    (found,) = lint(BROKEN[rule])
    assert found.rule == rule
    assert found.line.startswith(__file__)
    assert f"[{rule}]" in str(found)


def test_variable_parameters_are_found() -> None:
    assert [item.rule for item in lint(variable)] == ["parameters"]


def portable(x: Any, sizes: tuple[int, ...] = (1, 2), eps: float = 1e-6) -> Any:
    class Config(nl.NKIObject):  # type: ignore[misc, name-defined]  # modules have no types
        size = 1

    names = {"a": Config.size}
    tile = nl.load(x)
    for i in range(sizes[0]):
        tile = nl.add(tile, eps * i + names["a"])
    return stored(tile)


def test_a_portable_kernel_has_no_findings() -> None:
    assert lint(portable) == []

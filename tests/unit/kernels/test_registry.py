from __future__ import annotations

from typing import Any

import pytest

from nxdi.errors import UnsupportedError
from nxdi.kernels import registry
from nxdi.kernels.registry import Choice, Kernel, choose, platform, register


@pytest.fixture(autouse=True)
def _own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_KERNELS", {})
    register("double", "generic", Kernel("plain", lambda x: 2 * x, lambda call: None))
    register("double", "cpu", Kernel("shift", lambda x: x << 1, _only_integers))
    register("double", "cpu", Kernel("add", lambda x: x + x, _not_a_string))


def _only_integers(call: Any) -> str | None:
    return None if isinstance(call, int) else f"{type(call).__name__}, not an integer"


def _not_a_string(call: Any) -> str | None:
    return "text" if isinstance(call, str) else None


def test_generic_kernels_serve_without_a_platform() -> None:
    assert choose("double", 1).name == "plain"


@pytest.mark.parametrize(("call", "name"), [(1, "shift"), (1.5, "add"), ("a", "plain")])
def test_candidates_are_asked_in_order(call: Any, name: str) -> None:
    with platform("cpu"):
        kernel = choose("double", call)
    assert kernel.name == name
    assert kernel.run(call) == 2 * call


def test_choices_are_recorded_once_with_their_reasons() -> None:
    with platform("cpu") as choices:
        for call in (1, 2, "a"):
            choose("double", call)
    refused = (("shift", "str, not an integer"), ("add", "text"))
    assert choices == {Choice("double", "shift"), Choice("double", "plain", refused)}


def test_another_platform_has_the_generic_kernels() -> None:
    with platform("gpu"):
        assert choose("double", 1).name == "plain"


def test_platforms_nest() -> None:
    with platform("cpu") as outer:
        with platform("generic") as inner:
            choose("double", 1)
        choose("double", 1)
    assert [choice.chosen for choice in inner] == ["plain"]
    assert [choice.chosen for choice in outer] == ["shift"]


def test_nothing_serves() -> None:
    register("halve", "generic", Kernel("exact", lambda x: x // 2, lambda call: "odd number"))
    with pytest.raises(UnsupportedError, match=r"no kernel for halve 3: \[\('exact', 'odd number"):
        choose("halve", 3)


def test_unknown_operation() -> None:
    with pytest.raises(UnsupportedError, match="no kernel for triple 1"):
        choose("triple", 1)

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from nxdi.errors import UnsupportedError
from nxdi.kernels import registry
from nxdi.kernels.registry import (
    Choice,
    Kernel,
    below,
    by_kernel,
    check_strict,
    choose,
    named_layers,
    platform,
    register,
)


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


class Doubling(nn.Module):
    def forward(self, x: Any) -> Any:
        return choose("double", x).run(x)


class Pair(nn.Module):
    """A choice in a part, and one of its own after it."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Doubling()

    def forward(self, x: Any) -> Any:
        return choose("double", self.part(x)).name


def test_choices_carry_the_name_of_their_layer() -> None:
    model = nn.ModuleDict({"mlp": Pair()})
    with platform("cpu") as choices, named_layers(model):
        model["mlp"](1)
    assert choices == {
        Choice("double", "shift", layer="mlp.part"),
        Choice("double", "shift", layer="mlp"),
    }
    placed = sorted(below("layers.3", choices))
    assert [choice.layer for choice in placed] == ["layers.3.mlp", "layers.3.mlp.part"]
    assert list(below("", placed)) == placed
    assert by_kernel(placed) == {Choice("double", "shift"): ("layers.3.mlp", "layers.3.mlp.part")}
    with platform("cpu") as choices:
        model["mlp"](1)
    assert choices == {Choice("double", "shift")}


def test_strict_kernels_name_every_layer_and_reason() -> None:
    register("halve", "cpu", Kernel("shift", lambda x: x >> 1, lambda call: "odd number"))
    register("halve", "generic", Kernel("plain", lambda x: x / 2, lambda call: None, True))
    register("third", "generic", Kernel("plain", lambda x: x / 3, lambda call: None, True))
    with platform("cpu") as choices:
        choose("double", 1)
        check_strict(choices)
        choose("halve", 3)
        choose("third", 3)
    with pytest.raises(UnsupportedError, match="strict_kernels") as raised:
        check_strict(below("layers.0.mlp", choices))
    lines = str(raised.value).splitlines()
    assert lines[1:3] == [
        "  layers.0.mlp: halve by the reference plain (shift: odd number)",
        "  layers.0.mlp: third by the reference plain (there is no kernel for it)",
    ]


def test_a_forward_that_raises_leaves_no_name_behind() -> None:
    """Choices made after it are not said to be those of the layer that raised."""

    class Raising(nn.Module):
        def forward(self, x: object) -> None:
            raise ValueError(x)

    with pytest.raises(ValueError, match="1"), named_layers(root := nn.Sequential(Raising())):
        root(1)
    with platform("test-names") as choices:
        choose("double", 2)
    assert {choice.layer for choice in choices} == {""}

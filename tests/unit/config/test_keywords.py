"""The base of the option classes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from nxdi.config.keywords import (
    KeywordConfig,
    changed_fields,
    check_known,
    derived,
    to_torch_dtype,
)
from nxdi.errors import ConfigError


@dataclass(init=False, repr=False, eq=False)
class Box(KeywordConfig):
    width: int = 2
    height: int = derived(lambda c: c.width * 2)
    labels: list[str] = field(default_factory=list)
    depth: int | None = None


def test_derived_defaults_follow_the_fields_above() -> None:
    assert Box(width=5).height == 10
    assert Box(width=5, height=1).height == 1
    assert Box(width=5, height=None).height == 10


def test_changed_fields_compares_with_the_derived_default() -> None:
    assert [f.name for f in changed_fields(Box(width=5))] == ["width"]
    assert [f.name for f in changed_fields(Box(width=5, height=4))] == ["width", "height"]
    assert changed_fields(Box(width=2, height=4, labels=[], depth=None)) == []


def test_types_are_checked_through_optionals() -> None:
    assert Box(depth=3).depth == 3
    with pytest.raises(ConfigError, match=r"Box: depth='3' must be of type int \| None"):
        Box(depth="3")


def test_equality_needs_the_same_class() -> None:
    assert Box(width=3) == Box(width=3)
    assert Box(width=3) != Box(width=4)
    assert Box() != object()


def test_repr_shows_what_was_changed() -> None:
    assert repr(Box(width=3)) == "Box(width=3)"


def test_check_known_suggests_only_near_names() -> None:
    check_known("Box", ["width"], ["width", "height"])
    with pytest.raises(ConfigError, match=r"Box has no option 'wdith' \(did you mean width\?\)"):
        check_known("Box", ["wdith"], ["width", "height"])
    with pytest.raises(ConfigError, match=r"no option 'q'; remove"):
        check_known("Box", ["q"], ["width", "height"])


def test_dtype_names() -> None:
    assert to_torch_dtype("bfloat16") is torch.bfloat16
    assert to_torch_dtype(torch.int8) is torch.int8
    assert to_torch_dtype("float8_e4m3fn") is torch.float8_e4m3fn
    with pytest.raises(ConfigError, match="is not a torch dtype"):
        to_torch_dtype("Tensor")

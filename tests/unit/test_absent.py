"""Imports that fail with a reason, and imports that fail as ever."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest

from nxdi import absent


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> str:
    """A module at a path where NxDI has more names."""
    name = "nxdi.models.llama.modeling_llama"
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    absent.explain_absent_names(name)
    return name


def test_a_reason_covers_what_is_below_it() -> None:
    why = absent.ABSENT["modules.eagle"]
    assert absent.reason("modules.eagle") == absent.reason("modules.eagle.a.b") == why
    assert absent.reason("modules.eagle_of_mine") is absent.reason("modules") is None


def test_an_absent_name_says_why(module: str) -> None:
    with pytest.raises(ImportError, match=r"convert_state_dict_to_fused_qkv does not exist.*docs/"):
        importlib.import_module(module).convert_state_dict_to_fused_qkv  # noqa: B018 - reading it


def test_a_typing_error_is_an_attribute_error(module: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'NeuronLama'"):
        importlib.import_module(module).NeuronLama  # noqa: B018 - reading it is the test


def test_absent_modules_are_explained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    absent.explain_absent_modules()
    num_finders = len(sys.meta_path)
    absent.explain_absent_modules()
    assert len(sys.meta_path) == num_finders


def test_modules_outside_nxdi_are_not_looked_at() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'pipeline_of_nobody'"):
        importlib.import_module("pipeline_of_nobody")

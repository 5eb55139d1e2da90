"""Where the kernels' `nki` comes from."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from nxdi.kernels.nki import has_compiler, load_kernels


def test_a_placeholder_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("nki.isa")
    monkeypatch.setitem(sys.modules, "nki.isa", module)
    assert not has_compiler()
    module.nc_matmul = print  # type: ignore[attr-defined]  # what makes it one
    assert has_compiler()


def test_a_module_is_loaded_once() -> None:
    assert load_kernels("rmsnorm") is load_kernels("rmsnorm")
    assert load_kernels("rmsnorm").rmsnorm.__name__ == "rmsnorm"

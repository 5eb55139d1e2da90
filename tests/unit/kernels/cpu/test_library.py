"""The library of kernels: loaded once, from its own build or a copy, and clear about failures."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nxdi import env
from nxdi.errors import UnsupportedError
from nxdi.kernels.cpu import library
from nxdi.kernels.registry import Choice


def test_a_copied_library_needs_no_compiler(tmp_path: Path):
    copy = shutil.copy(library.library_path(), tmp_path / "kept.so")
    script = f"""
import torch
from pathlib import Path
from nxdi.kernels.cpu import library
from nxdi.kernels.cpu.attend import load_attend_op
from nxdi.kernels.cpu.linear import load_linear_op
assert "no_such_compiler" in library.unsupported_reason()
library.load_library(Path({str(copy)!r}))
assert torch.equal(
    load_linear_op()(torch.ones(2, 3), torch.ones(4, 3), None), torch.full((2, 4), 3.0)
)
q, kv, allowed = torch.ones(1, 1, 2, 1, 4), torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3) > 0
assert torch.equal(load_attend_op()(q, kv, kv, allowed, None, 1.0, None), q)
assert library.unsupported_reason() is None
assert library.library_path() == Path({str(copy)!r})
"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "no_such_compiler")
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr


def test_without_a_compiler_the_reason_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "_loaded", None)
    monkeypatch.setattr(env, "cxx", lambda: None)
    with pytest.raises(UnsupportedError, match=r"need a C\+\+ compiler, none was found; install"):
        library.library_path()
    reason = library.unsupported_reason()
    assert reason is not None
    assert "install g++" in reason


def test_a_file_that_is_no_library_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(library, "_loaded", None)
    (tmp_path / "kernels.so").write_bytes(b"not machine code")
    with pytest.raises(UnsupportedError, match=r"cannot load .*kernels\.so: .*compile again here"):
        library.load_library(tmp_path / "kernels.so")


def test_only_our_kernels_need_the_library():
    theirs, ours = Choice("attend", "sdpa"), Choice("linear", "nxdi_cpu::linear")
    assert library.uses_library([theirs, ours])
    assert not library.uses_library([theirs, Choice("linear", "nxdi::onednn_linear")])

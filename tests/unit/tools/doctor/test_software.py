from __future__ import annotations

import re
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from nxdi.errors import UnsupportedError
from nxdi.tools.doctor import software
from nxdi.tools.doctor.findings import Verdict

SETUP = Path(__file__).parents[4] / "setup.py"
HAS_COMPILER = shutil.which("g++") or shutil.which("clang++")


def test_the_ranges_are_those_of_the_package() -> None:
    text = SETUP.read_text()
    for name, wanted in software.RANGES.items():
        assert f'"{name}{wanted}"' in text
    assert f'python_requires="{software.PYTHON_RANGE}"' in text


def test_what_runs_these_tests_is_in_range() -> None:
    assert software.check_python().verdict is Verdict.OK
    for name, wanted in software.RANGES.items():
        assert software.check_package(name, wanted).verdict is Verdict.OK


def test_a_version_out_of_range_fails() -> None:
    finding = software.check_package("torch", ">=99")
    assert (finding.verdict, finding.found) == (Verdict.FAILED, torch.__version__)
    assert ">=99" in finding.remedy


def test_a_missing_package_fails() -> None:
    finding = software.check_package("no-such-package-anywhere", ">=1")
    assert finding.verdict is Verdict.FAILED
    assert "pip install 'no-such-package-anywhere>=1'" in finding.remedy


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nxdi.env.cxx", lambda: None)
    for check in (software.check_compiler, software.check_openmp):
        assert check().verdict is Verdict.FAILED
        assert "g++" in check().remedy
    monkeypatch.setattr(software, "resolve_backend", lambda name: "neuron")
    assert software.check_compiler().verdict is Verdict.WARNING  # nothing needs it there


@pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler")
def test_the_compiler_here() -> None:
    assert software.check_compiler().verdict is Verdict.OK
    assert software.check_openmp().verdict is Verdict.OK


def test_a_compiler_without_openmp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "c++"
    script.write_text("#!/bin/sh\necho 'omp.h: no such file' >&2\nexit 1\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    finding = software.check_openmp()
    assert finding.verdict is Verdict.FAILED
    assert "no such file" in finding.found


def test_a_kernel_that_does_not_build_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot() -> Any:
        raise UnsupportedError("no compiler")

    monkeypatch.setattr(software, "load_linear_op", cannot)
    finding = software.check_streaming_kernel()
    assert (finding.verdict, finding.found) == (Verdict.WARNING, "no compiler")


@pytest.mark.parametrize(("error", "verdict"), [(0.0, Verdict.OK), (0.01, Verdict.FAILED)])
def test_a_kernel_that_computes_wrongly_fails(
    error: float, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x @ weight.float().T * (1 + error)

    monkeypatch.setattr(software, "load_linear_op", lambda: kernel)
    finding = software.check_streaming_kernel()
    assert finding.verdict is verdict
    assert re.search(r"\de-\d\d", finding.found)


def test_a_kernel_that_gives_no_numbers_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        software, "load_linear_op", lambda: lambda x, weight: torch.full((3, 40), torch.nan)
    )
    assert software.check_streaming_kernel().verdict is Verdict.FAILED

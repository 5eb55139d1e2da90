"""Compiling a C++ source once: cached, shared between processes, and clear about failures."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from nxdi import env
from nxdi.errors import UnsupportedError
from nxdi.kernels.cpu.build import build_library


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NXDI_CACHE_DIR", str(tmp_path / "cache"))
    source = tmp_path / "answer.cpp"
    source.write_text('extern "C" int answer() { return 42; }')
    return source


@pytest.fixture
def compilations(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that gets one line for each compilation."""
    log, wrapper = tmp_path / "log", tmp_path / "c++"
    count = f'case "$*" in *answer.cpp*) echo "$@" >> {log}; sleep 1;; esac'
    wrapper.write_text(f'#!/bin/sh\n{count}\nexec {env.cxx()} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", str(wrapper))
    return log


def test_a_library_is_compiled_once(source: Path, compilations: Path):
    library = build_library(source)
    assert library.is_relative_to(env.cache_dir() / "kernels")
    assert ctypes.CDLL(str(library)).answer() == 42
    assert build_library(source) == library
    assert len(compilations.read_text().splitlines()) == 1


def test_another_source_is_another_library(source: Path):
    first = build_library(source)
    source.write_text('extern "C" int answer() { return 43; }')
    second = build_library(source)
    assert second != first
    assert ctypes.CDLL(str(second)).answer() == 43


def test_processes_that_start_together_compile_once(source: Path, compilations: Path):
    script = (
        f"from pathlib import Path; from nxdi.kernels.cpu.build import build_library; "
        f"print(build_library(Path({str(source)!r})))"
    )
    command = [sys.executable, "-c", script]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (process.communicate()[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert first == second
    assert ctypes.CDLL(first.strip()).answer() == 42
    assert len(compilations.read_text().splitlines()) == 1


def test_no_compiler(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(env, "cxx", lambda: None)
    with pytest.raises(UnsupportedError, match=r"none was found; install g\+\+ or clang\+\+"):
        build_library(source)


def test_a_compiler_that_cannot_be_run(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(
        UnsupportedError, match=r"cannot run the C\+\+ compiler: .*/no/such/compiler"
    ):
        build_library(source)


def test_a_failed_compilation_shows_the_end_of_the_log_and_leaves_nothing(source: Path):
    source.write_text("int broken() { return undeclared_name; }")
    for _ in range(2):
        with pytest.raises(
            UnsupportedError, match=r"could not compile answer\.cpp(.|\n)*undeclared_name"
        ):
            build_library(source)
    assert not list(env.cache_dir().rglob("*.so"))


def test_a_cache_that_cannot_be_written(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NXDI_CACHE_DIR", str(source))  # a file, not a folder
    with pytest.raises(
        UnsupportedError, match="set NXDI_CACHE_DIR to a folder that can be written"
    ):
        build_library(source)

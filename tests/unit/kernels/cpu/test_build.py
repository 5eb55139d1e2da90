"""Compiling C++ sources once: cached, shared between processes, and clear about failures."""

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
    source = tmp_path / "sources" / "answer.cpp"
    source.parent.mkdir()
    source.write_text('#include "answer.h"\nextern "C" int answer() { return ANSWER + more(); }')
    source.with_name("answer.h").write_text("#define ANSWER 40\nint more();")
    source.with_name("more.cpp").write_text("int more() { return 2; }")
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
    library = build_library(source.parent)
    assert library.is_relative_to(env.cache_dir() / "kernels")
    assert ctypes.CDLL(str(library)).answer() == 42
    assert build_library(source.parent) == library
    assert len(compilations.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("answer.cpp", 'extern "C" int answer() { return 43; }'),
        ("answer.h", "#define ANSWER 41\nint more();"),
        ("more.cpp", "int more() { return 3; }"),
    ],
)
def test_another_source_or_header_is_another_library(source: Path, name: str, text: str):
    first = build_library(source.parent)
    source.with_name(name).write_text(text)
    second = build_library(source.parent)
    assert second != first
    assert ctypes.CDLL(str(second)).answer() == 43


def test_processes_that_start_together_compile_once(source: Path, compilations: Path):
    script = (
        f"from pathlib import Path; from nxdi.kernels.cpu.build import build_library; "
        f"print(build_library(Path({str(source.parent)!r})))"
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
        build_library(source.parent)


def test_a_compiler_that_cannot_be_run(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(
        UnsupportedError, match=r"cannot run the C\+\+ compiler: .*/no/such/compiler"
    ):
        build_library(source.parent)


def test_a_failed_compilation_shows_the_end_of_the_log_and_leaves_nothing(source: Path):
    source.write_text("int broken() { return undeclared_name; }")
    for _ in range(2):
        with pytest.raises(
            UnsupportedError, match=r"could not compile the kernels(.|\n)*undeclared_name"
        ):
            build_library(source.parent)
    assert not list(env.cache_dir().rglob("*.so"))


def test_a_cache_that_cannot_be_written(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NXDI_CACHE_DIR", str(source))  # a file, not a folder
    with pytest.raises(
        UnsupportedError, match="set NXDI_CACHE_DIR to a folder that can be written"
    ):
        build_library(source.parent)

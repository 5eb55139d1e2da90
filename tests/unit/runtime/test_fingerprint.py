from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import nxdi
from nxdi.models.llama.modeling_llama import NeuronLlamaForCausalLM
from nxdi.runtime.fingerprint import code_version, library_digest


@pytest.fixture
def define(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], type]:
    """Defines a class of a user's own module `their_model`, from its source."""

    def define(body: str) -> type:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.py"
        file.write_text(f"class Model:\n    {body}\n")
        spec = importlib.util.spec_from_file_location("their_model", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "their_model", module)
        spec.loader.exec_module(module)
        found: type = module.Model
        return found

    return define


def test_starts_with_the_version() -> None:
    assert code_version().startswith(f"{nxdi.__version__}+")


def test_classes_of_the_library_are_in_its_own_digest() -> None:
    assert code_version(NeuronLlamaForCausalLM) == code_version()


def test_a_user_s_code_counts(define: Callable[[str], type]) -> None:
    first = code_version(define("x = 1"))
    assert first != code_version()
    assert code_version(define("x = 1")) == first
    assert code_version(define("x = 2")) != first


def test_the_modules_of_base_classes_count(define: Callable[[str], type]) -> None:
    def derived(body: str) -> type:
        return type("Derived", (define(body),), {"__module__": "builtins"})

    assert code_version(derived("x = 1")) != code_version(derived("x = 2"))


def test_a_class_typed_in_interactively_has_no_source() -> None:
    typed_in = type("Typed", (), {"__module__": "nowhere"})
    assert code_version(typed_in) == code_version(typed_in)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small copy of the library that may be changed."""
    root = tmp_path / "nxdi"
    root.mkdir()
    for name in ("__init__.py", "errors.py"):
        shutil.copy(Path(nxdi.__file__).parent / name, root)
    monkeypatch.setattr(nxdi, "__file__", str(root / "__init__.py"))
    library_digest.cache_clear()
    yield root
    library_digest.cache_clear()


@pytest.mark.parametrize("name", ["errors.py", "new.py", "kernel.cpp", "kernel.h"])
def test_an_edited_or_new_file_changes_the_digest(library: Path, name: str) -> None:
    before = library_digest()
    with (library / name).open("a") as file:
        file.write("# edited\n")
    library_digest.cache_clear()
    assert library_digest() != before


def test_files_that_are_not_code_do_not_count(library: Path) -> None:
    before = library_digest()
    (library / "notes.txt").write_text("notes")
    library_digest.cache_clear()
    assert library_digest() == before


def test_a_renamed_file_changes_the_digest(library: Path) -> None:
    before = library_digest()
    (library / "errors.py").rename(library / "faults.py")
    library_digest.cache_clear()
    assert library_digest() != before

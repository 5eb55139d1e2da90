"""What the Neuron tests share: the double in place of the SDK, and an environment of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from neuron.nxd_double import Double
from neuron.support import neuron_app
from tiny_models import save_tiny, tiny_hf_model

Folders = Callable[[str], Path]
Artifacts = Callable[[int], Path]


def compile_elsewhere(
    folder: Path, artifact: Path, versions: dict[str, str] | None = None, **options: Any
) -> Path:
    """An artefact as another process leaves it, with an SDK of other versions if they are given."""
    with pytest.MonkeyPatch.context() as patch:
        Double(is_durable=True, versions=versions).install(patch.setattr)
        neuron_app(folder, **options).compile(artifact, progress=False)
    return artifact


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Nothing a test or the backend sets stays; nothing set outside counts."""
    foreign = ("NEURON_", "BASE_COMPILE_WORK_DIR", "DISABLE_NUMERIC_CC", "FI_", "MASTER_")
    with patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith(foreign)]:
            del os.environ[name]
        yield


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Double:
    """An SDK and a device, as far as nxdi can tell; temporary files go where the test's own do."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    double = Double()
    double.install(monkeypatch.setattr)
    return double


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The folder of a family's tiny model; to be left as it is."""
    return cache(
        lambda family: save_tiny(tiny_hf_model(family), tmp_path_factory.mktemp("neuron") / family)
    )


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory, folders: Folders) -> Artifacts:
    """The tiny Llama compiled for some ranks of trn2; to be loaded, and left as it is."""

    def compiled(tp_degree: int) -> Path:
        artifact = tmp_path_factory.mktemp("neuron") / "artifact"
        return compile_elsewhere(folders("llama"), artifact, tp_degree=tp_degree)

    return cache(compiled)

"""A port found by the architecture in config.json: registered, or by an installed package."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import nxdi
from golden.parity import BUCKETS, Reference, check_generate
from nxdi.models import registry
from port.cases import BY_NAME
from port.gpt2_port import NeuronGPT2ForCausalLM
from port.stablelm_port import NeuronStableLmForCausalLM

Get = Callable[[str], Reference]
LENGTHS = [32, 17, 31]


@pytest.fixture(autouse=True)
def _own_registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.setattr(registry, "ARCHITECTURES", {})


def test_registered(reference_of: Get, tmp_path: Path) -> None:
    reference = reference_of("gpt2")
    nxdi.register("GPT2LMHeadModel", NeuronGPT2ForCausalLM)
    model = nxdi.AutoModelForCausalLM.from_pretrained(
        reference.folder,
        artifact_dir=tmp_path / "artifact",
        progress=False,
        batch_size=3,
        torch_dtype="float32",
        backend="eager",
        **BUCKETS,
    )
    assert type(model) is NeuronGPT2ForCausalLM
    check_generate(model, reference, LENGTHS, "left")
    # The artefact alone knows its class, its options and where the weights are.
    again = nxdi.AutoModelForCausalLM.from_pretrained(tmp_path / "artifact")
    assert type(again) is NeuronGPT2ForCausalLM
    assert again.config == model.config
    check_generate(again, reference, LENGTHS, "right")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that declares a model."""
    info = tmp_path / "some_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[nxdi.models]\nStableLmForCausalLM = port.stablelm_port:NeuronStableLmForCausalLM\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])


@pytest.mark.usefixtures("installed")
def test_an_entry_point(reference_of: Get) -> None:
    reference = reference_of("stablelm")
    assert nxdi.AutoModelForCausalLM.class_for(reference.folder) is NeuronStableLmForCausalLM
    app = BY_NAME["stablelm"].load_app(reference.folder)
    check_generate(app, reference, LENGTHS, "left")


@pytest.mark.usefixtures("installed")
def test_an_unknown_architecture_is_told_what_is_installed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["NobodysForCausalLM"]}))
    with pytest.raises(nxdi.UnsupportedError, match="known are StableLmForCausalLM"):
        nxdi.AutoModelForCausalLM.class_for(tmp_path)

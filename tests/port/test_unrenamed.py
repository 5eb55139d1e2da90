"""`nxdi port` over each model of this folder as its owner has it, before the two roots were one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nxdi.cli import main
from port.cases import BY_NAME

FOLDER = Path(__file__).parent
# What comes from neuronx_distributed; all else is from neuronx_distributed_inference.
LAYERS = re.compile(r"^( *from )nxdi(?=\.parallel_layers\b|\.utils import cpu_mode)", re.MULTILINE)
REST = re.compile(r"^( *from )nxdi\b", re.MULTILINE)


def as_its_owner_has_it(text: str) -> str:
    return REST.sub(r"\1neuronx_distributed_inference", LAYERS.sub(r"\1neuronx_distributed", text))


def test_every_port_is_here() -> None:
    assert {path.stem for path in FOLDER.glob("*_port.py")} == {f"{name}_port" for name in BY_NAME}


@pytest.mark.parametrize("name", BY_NAME)
def test_nothing_is_missing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ported = (FOLDER / f"{name}_port.py").read_text(encoding="utf-8")
    original = as_its_owner_has_it(ported)
    assert "nxdi" not in original
    file = tmp_path / "modeling.py"
    file.write_text(original, encoding="utf-8")
    assert main(["port", str(file), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["summary"]["missing"] == 0
    assert report["summary"]["supported"] > 5
    assert main(["port", str(file), "--write"]) == 0
    assert file.read_text(encoding="utf-8") == ported


def test_a_missing_name_would_be_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = as_its_owner_has_it((FOLDER / "gpt2_port.py").read_text(encoding="utf-8"))
    file = tmp_path / "modeling.py"
    file.write_text(original.replace("NeuronBaseModel", "NeuronBaseModels"), encoding="utf-8")
    assert main(["port", str(file), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["summary"]["missing"] > 0

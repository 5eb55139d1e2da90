"""`nxdi port`: output, exit codes, and that nothing is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nxdi.cli import main

CLEAN = "from neuronx_distributed_inference.models.config import NeuronConfig  # keep me\n"
MISSING = CLEAN.replace("NeuronConfig", "MultimodalVisionNeuronConfig")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "modeling.py"
    path.write_text(CLEAN)
    return path


def test_by_default_nothing_is_written(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["port", str(file)]) == 0
    assert file.read_text() == CLEAN
    assert capsys.readouterr().out.splitlines() == [
        f"--- {file}",
        f"+++ {file}",
        "@@ -1 +1 @@",
        f"-{CLEAN.rstrip()}",
        "+from nxdi.models.config import NeuronConfig  # keep me",
        f"{file}:1: supported  neuronx_distributed_inference.models.config.NeuronConfig",
        "1 of 1 files would change; names: 1 supported, 0 changed, 0 missing",
    ]


def test_write_edits_in_place(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["port", str(file), "--write"]) == 0
    assert file.read_text() == "from nxdi.models.config import NeuronConfig  # keep me\n"
    assert "1 of 1 files changed" in capsys.readouterr().out
    assert main(["port", str(file), "--write"]) == 0
    assert "0 of 1 files changed; names: 1 supported" in capsys.readouterr().out


def test_out_writes_a_copy(file: Path, tmp_path: Path) -> None:
    assert main(["port", str(file.parent), "--out", str(tmp_path.parent / "ported")]) == 0
    assert file.read_text() == CLEAN
    assert (tmp_path.parent / "ported/modeling.py").read_text().startswith("from nxdi.models")


def test_a_missing_name_is_exit_code_1(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(MISSING)
    assert main(["port", str(file), "--write"]) == 1
    line = capsys.readouterr().out.splitlines()[0]
    name = "neuronx_distributed_inference.models.config.MultimodalVisionNeuronConfig"
    assert f"missing    {name}: models that take images" in line
    assert file.read_text() == MISSING.replace("neuronx_distributed_inference", "nxdi")


def test_a_file_that_cannot_be_ported_is_exit_code_1_within_a_folder_and_2_alone(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = file.parent / "broken.py"
    broken.write_text("def f(:")
    assert main(["port", str(file.parent), "--write"]) == 1
    assert f"{broken}: not ported: line 1: not valid Python" in capsys.readouterr().out
    assert file.read_text() != CLEAN
    assert main(["port", str(broken)]) == 2
    assert f"error: {broken}: line 1: not valid Python" in capsys.readouterr().err


def test_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(MISSING)
    assert main(["port", str(file), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["summary"] == {"supported": 0, "changed": 0, "missing": 1}
    (described,) = report["files"]
    assert (described["path"], described["rewritten"]) == (str(file), True)
    assert described["error"] is None
    (finding,) = described["findings"]
    assert (finding["line"], finding["status"]) == (1, "missing")


def test_the_source_is_never_run(file: Path) -> None:
    trap = file.parent / "ran"
    file.write_text(f"{CLEAN}open({str(trap)!r}, 'w')\nraise SystemExit(3)\n")
    assert main(["port", str(file), "--write"]) == 0
    assert not trap.exists()


def test_write_and_out_exclude_each_other(file: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["port", str(file), "--write", "--out", "x"])
    assert caught.value.code == 2

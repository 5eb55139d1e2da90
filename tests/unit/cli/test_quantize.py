"""`nxdi quantize`: what its options ask for, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nxdi.cli import EXIT_BAD_REQUEST, main, quantize
from nxdi.config.quantization import QUANTIZATION_TYPES, STORED_DTYPES
from tiny_models import save_tiny, tiny_hf_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tiny_hf_model("mixtral"), tmp_path_factory.mktemp("models") / "model")


def test_the_choices_are_those_of_the_configuration() -> None:
    assert tuple(STORED_DTYPES) == quantize.DTYPES
    assert quantize.TYPES == QUANTIZATION_TYPES


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("", {"dtype": "int8", "type": "per_channel_symmetric"}),
        ("--dtype int4", {"dtype": "int4", "type": "blockwise_symmetric", "block_size": [1, 32]}),
        (
            "--type expert_wise_per_channel_symmetric",
            {"dtype": "int8", "type": "expert_wise_per_channel_symmetric"},
        ),
        (
            "--dtype f8e4m3 --block-size 16 8",
            {"dtype": "f8e4m3", "type": "blockwise_symmetric", "block_size": [16, 8]},
        ),
        (
            "--dtype f4e2m1 --skip down_proj --skip experts",
            {
                "dtype": "f4e2m1",
                "type": "blockwise_symmetric",
                "block_size": [1, 32],
                "scale_dtype": "f8e8m0",
            },
        ),
    ],
)
def test_a_folder(
    asked: str,
    expected: dict[str, Any],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert main(["quantize", str(folder), "--out", str(out), *asked.split()]) == 0
    printed = capsys.readouterr().out
    stored = json.loads((out / "config.json").read_text())["quantization_config"]
    assert stored.pop("quant_method") == "nxdi"
    skipped = stored.pop("modules_to_not_convert", [])
    assert stored == {f"quantization_{name}": value for name, value in expected.items()}
    assert ("experts.down_proj" in printed) is not bool(skipped)
    assert "largest error:" in printed
    assert "layers quantized; weights:" in printed


def test_blocks_that_do_not_fit(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["quantize", str(folder), "--out", str(tmp_path / "out"), "--dtype", "int4"]
    assert main([*asked, "--block-size", "1", "3"]) == EXIT_BAD_REQUEST
    assert "share a byte" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

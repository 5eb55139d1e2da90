"""`nxdi estimate` on a tiny config: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nxdi.cli import main
from tiny_models import tiny_hf_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("estimate") / "tiny"
    tiny_hf_model("llama").config.save_pretrained(folder)  # no weights
    (folder / "config.json").write_text(
        json.dumps(
            {
                **json.loads((folder / "config.json").read_text()),
                "architectures": ["LlamaForCausalLM"],
            }
        )
    )
    return folder


def estimate(folder: Path, options: str) -> int:
    return main(["estimate", str(folder), "--seq-len", "64", *options.split()])


def test_one_combination_as_text(folder: Path, capsys: Capture) -> None:
    assert estimate(folder / "config.json", "--target trn2 --tp 2 --prompt-len 40") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ("tiny on trn2, 2 cores per rank: 1 prompt with 40 tokens and 24 new tokens")
    assert any(line.startswith("per token ") for line in lines)


def test_every_combination_in_a_table_and_a_page(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "new" / "page.html"
    options = "--target inf2 --tp 1,5,100 --quantization none,int8"
    assert estimate(folder, f"{options} --out {out}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["tp_degree", "quantization_dtype"]
    assert [line.split()[:3] for line in lines[5:7]] == [
        ["100", "none", "refused"],
        ["100", "int8", "refused"],
    ]
    assert "100 ranks do not fit one inf2 instance" in lines[7]
    assert out.read_text().count("<svg") == 2


def test_any_option_can_be_compared(folder: Path, capsys: Capture) -> None:
    options = "--target trn1 --json --compare pa_block_size=[8,16] --option is_block_kv_layout=true"
    assert estimate(folder, options) == 0
    found = json.loads(capsys.readouterr().out)
    assert [variant["options"] for variant in found] == [
        {"pa_block_size": 8},
        {"pa_block_size": 16},
    ]
    assert found[0]["target"] == "trn1"


def test_speculation_with_a_draft_model(folder: Path, capsys: Capture) -> None:
    options = (
        "--target trn2 --json --speculation-length 0,4 --acceptance-length 3 --quantization int8"
    )
    assert estimate(folder, f"{options} --draft {folder}") == 0
    plain, drafted = json.loads(capsys.readouterr().out)
    assert plain["per_token"]["draft"] == 0
    # Three decode steps for three tokens, of the model that is not quantized.
    assert drafted["per_token"]["draft"] >= plain["per_token"]["total"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--target trn9", "target='trn9' is not known; use one of inf2, trn1, trn2, trn3"),
        ("--target inf2 --tp 25", "25 ranks do not fit one inf2 instance"),
        ("--target trn2 --option seq_len=9", "seq_len is given twice; keep one"),
        ("--target trn2 --option tp_size=9", "did you mean"),
        ("--target trn2 --acceptance-length 2", "give --speculation-length as well"),
        ("--target trn2 --speculation-length 4", "needs an acceptance_length"),
        ("--target trn2 --new-tokens 65", "longer than seq_len=64"),
        (
            "--target trn2 --option sequence_parallel_enabled=true --tp 3",
            "divisible by tp_degree=3",
        ),
    ],
)
def test_what_cannot_be_is_one_line(options: str, said: str, folder: Path, capsys: Capture) -> None:
    assert estimate(folder, options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")


def test_a_folder_without_a_config(tmp_path: Path, capsys: Capture) -> None:
    assert estimate(tmp_path, "--target trn2") == 2
    assert "it has no config.json" in capsys.readouterr().err


@pytest.mark.parametrize("options", ["", "--target trn2 --tp two", "--target trn2 --compare a=1"])
def test_malformed_options_are_refused_by_the_parser(options: str, folder: Path) -> None:
    with pytest.raises(SystemExit) as exit_info:
        estimate(folder, options)
    assert exit_info.value.code == 2

"""The command line with a tiny real model, run eagerly: its text is transformers' text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from nxdi.cli import main
from tiny_models import save_tiny, tiny_hf_model

OPTIONS = ["--backend", "eager", "--seq-len", "64", "--dtype", "float32"]
ANSWER_LEN = 12


@pytest.fixture
def model_dir(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = save_tiny(tiny_hf_model("llama", vocab_size=256), tmp_path / "model")
    byte_tokenizer.save_pretrained(folder)
    return folder


def reference(model_dir: Path, text: str) -> str:
    """transformers' greedy continuation of `text`, as text."""
    model: Any = LlamaForCausalLM.from_pretrained(model_dir)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    prompt = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**prompt, max_new_tokens=ANSWER_LEN, do_sample=False)
    return str(tokenizer.decode(output[0, prompt.input_ids.shape[1] :]))


def test_generate_and_chat_from_a_compiled_folder(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled = str(tmp_path / "compiled")
    assert main(["compile", str(model_dir), *OPTIONS, "--out", compiled]) == 0
    capsys.readouterr()
    run = [str(model_dir), *OPTIONS, "--artifact-dir", compiled]
    for command, text in (("generate", "Hello, "), ("chat", "<user>Hello, <assistant>")):
        options = ["--prompt", "Hello, ", "--max-new-tokens", str(ANSWER_LEN)]
        assert main([command, *run, *options]) == 0
        assert capsys.readouterr().out == reference(model_dir, text) + "\n"


def test_compile_leaves_an_up_to_date_folder_and_replaces_another(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compiled"
    command = ["compile", str(model_dir), *OPTIONS, "--out", str(out)]
    assert main(command) == 0
    written = (out / "manifest.json").stat().st_ino
    assert "graphs" in capsys.readouterr().out
    assert main(command) == 0
    assert "was up to date" in capsys.readouterr().out
    assert (out / "manifest.json").stat().st_ino == written
    assert main([*command, "--batch-size", "2"]) == 0
    assert "compiled in" in capsys.readouterr().out
    assert (out / "manifest.json").stat().st_ino != written


def test_compile_keeps_out_of_a_folder_with_other_things(
    model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(model_dir), *OPTIONS, "--out", str(model_dir)]) == 2
    assert "no artefact to replace" in capsys.readouterr().err
    assert (model_dir / "model.safetensors").exists()


def test_other_options_than_the_compiled_ones_are_refused(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled = str(tmp_path / "compiled")
    assert main(["compile", str(model_dir), *OPTIONS, "--out", compiled]) == 0
    run = [str(model_dir), *OPTIONS, "--artifact-dir", compiled, "--batch-size", "2"]
    assert main(["generate", *run, "--prompt", "Hello"]) == 2
    assert "batch_size: built for 1, asked for 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--option seqlen=5", "did you mean seq_len"),
        ("--dtype bfloat", "not a torch dtype"),
        ("--option enable_bucketing=True", "must be of type bool"),
        ("--max-new-tokens 100", "64"),
    ],
)
def test_bad_requests_are_one_error(
    model_dir: Path,
    option: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["generate", str(model_dir), *OPTIONS, "--prompt", "Hi", *option.split()]) == 2
    assert message in capsys.readouterr().err

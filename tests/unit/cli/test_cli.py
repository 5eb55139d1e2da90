"""The command line, with a stand-in for the model: options, output, errors and exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import nxdi
from nxdi.cli import main
from nxdi.errors import BucketError
from nxdi.runtime.store import Manifest, write_artifact

ANSWER = "Paris, été."
MANIFEST = Manifest("0", "0", "0", "any", "cpu", {}, [{}, {}], [], {})


class FakeAutoModel:
    """Records what it is asked for."""

    calls: list[dict[str, Any]]

    @classmethod
    def from_pretrained(cls, folder: Path, *, artifact_dir: Path | None, **keywords: Any) -> Any:
        cls.calls.append({"artifact_dir": artifact_dir, **keywords})
        return SimpleNamespace(neuron_config=SimpleNamespace(seq_len=keywords["seq_len"]))


class FakeAdapter:
    """Answers with the same text whatever the prompt, one token at a time."""

    tokenizer: PreTrainedTokenizerFast
    calls: list[dict[str, Any]]

    def __init__(self, model: Any) -> None:
        pass

    def generate(self, input_ids: torch.Tensor, *, streamer: Any, **keywords: Any) -> torch.Tensor:
        self.calls.append({"prompt": self.tokenizer.decode(input_ids[0]), **keywords})
        answer = self.tokenizer(ANSWER, return_tensors="pt").input_ids
        if streamer is not None:
            streamer.put(input_ids)
            for token in answer[0]:
                streamer.put(token[None])
            streamer.end()
        return torch.cat([input_ids, answer], dim=1)


@pytest.fixture
def model_dir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, byte_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A model folder with a tokenizer only; the classes above stand in for the model."""
    folder = tmp_path / "model"
    byte_tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    FakeAutoModel.calls, FakeAdapter.calls, FakeAdapter.tokenizer = [], [], byte_tokenizer
    monkeypatch.setattr("nxdi.utils.hf_adapter.HuggingFaceGenerationAdapter", FakeAdapter)
    monkeypatch.setattr("nxdi.models.auto.AutoModelForCausalLM", FakeAutoModel)
    return folder


@pytest.fixture
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("NXDI_CACHE_DIR", str(folder))
    return folder


def write_two_artifacts(cache_root: Path) -> None:
    def populate(folder: Path) -> None:
        (folder / "graph.bin").write_bytes(b"x" * 1500)

    for name in ("first", "second"):
        write_artifact(cache_root / "artifacts" / name, MANIFEST, populate)
    piece = cache_root / "pieces" / "ab" / "abcd"
    piece.mkdir(parents=True)
    (piece / "kernel.so").write_bytes(b"y" * 2_500_000)


def test_nothing_heavy_is_imported_before_a_command_runs() -> None:
    script = """
import sys, nxdi, nxdi.cli
nxdi.cli.make_parser()
heavy = {"torch", "transformers", "numpy", "safetensors", "tqdm"} & set(sys.modules)
assert not heavy, heavy
"""
    path = {"PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=path)


COMMANDS = ["compile", "generate", "chat", "bench", "check", "info", "doctor", "lower", "cache"]
COMMANDS += ["convert-gguf", "port"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert f"usage: nxdi {command}".strip() in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"nxdi {nxdi.__version__}\n"


def test_module_runs_the_same_command() -> None:
    path = {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-m", "nxdi", "cache"]
    done = subprocess.run(command, capture_output=True, text=True, env=path, check=False)
    assert done.returncode == 2
    assert "ACTION" in done.stderr


def test_model_options_reach_the_model(model_dir: Path) -> None:
    options = (
        "--seq-len 64 --max-context-length 32 --batch-size 2 --tp-degree 4 --dtype bfloat16 "
        "--backend eager --option enable_bucketing=false --option attn_cls=Mine "
        '--option on_device_sampling_config={"top_k":5}'
    )
    assert main(["generate", str(model_dir), "--prompt", "Hi", *options.split()]) == 0
    assert FakeAutoModel.calls == [
        {
            "artifact_dir": None,
            "architecture": None,
            "seq_len": 64,
            "max_context_length": 32,
            "batch_size": 2,
            "tp_degree": 4,
            "torch_dtype": "bfloat16",
            "backend": "eager",
            "enable_bucketing": False,
            "attn_cls": "Mine",
            "on_device_sampling_config": {"top_k": 5},
        }
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--option seq_len=5", "use --seq-len"),
        ("--option torch_dtype=float32", "use --dtype"),
        ("--option a=1 --option a=2", "given twice"),
    ],
)
def test_contradictory_options(
    model_dir: Path, options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(model_dir), "--prompt", "Hi", *options.split()]) == 2
    assert message in capsys.readouterr().err
    assert FakeAutoModel.calls == []


@pytest.mark.parametrize("option", ["top_k", "=1", "a b=1"])
def test_option_without_name_or_value(
    model_dir: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["generate", str(model_dir), "--prompt", "Hi", "--option", option])
    assert stop.value.code == 2
    assert "is not NAME=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize("stream", [[], ["--no-stream"]])
def test_generate_prints_the_answer_only(
    model_dir: Path, stream: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(model_dir), "--prompt", "Capital?", *stream]) == 0
    assert capsys.readouterr().out == ANSWER + "\n"
    (call,) = FakeAdapter.calls
    assert call["prompt"] == "Capital?"
    assert call["attention_mask"].tolist() == [[1] * len("Capital?")]
    assert (call["max_new_tokens"], call["do_sample"]) == (256, False)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--temperature 0.5", {"do_sample": True, "temperature": 0.5, "top_k": 0, "top_p": 1.0}),
        ("--top-k 4 --top-p 0.9", {"do_sample": True, "temperature": 1, "top_k": 4, "top_p": 0.9}),
        ("--temperature 0 --top-k 4", {"do_sample": False}),
        ("--max-new-tokens 7", {"do_sample": False, "max_new_tokens": 7}),
        ("--seq-len 20", {"do_sample": False, "max_new_tokens": 12}),
        ("--seq-len 4", {"do_sample": False, "max_new_tokens": 1}),
    ],
)
def test_answer_options(model_dir: Path, options: str, expected: dict[str, Any]) -> None:
    assert main(["generate", str(model_dir), "--prompt", "Capital?", *options.split()]) == 0
    (call,) = FakeAdapter.calls
    del call["prompt"], call["attention_mask"]
    assert call == {"max_new_tokens": 256, **expected}


@pytest.mark.parametrize(
    "option",
    ["--temperature -1", "--temperature nan", "--top-k 0", "--top-p 1.5", "--max-new-tokens 0"],
)
def test_answer_option_out_of_range(
    model_dir: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["generate", str(model_dir), "--prompt", "Hi", *option.split()])
    assert stop.value.code == 2
    assert "is out of range: at least" in capsys.readouterr().err


def test_answer_option_that_is_no_number(
    model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["generate", str(model_dir), "--prompt", "Hi", "--top-k", "many"])
    assert stop.value.code == 2
    assert "invalid number value: 'many'" in capsys.readouterr().err


def test_seed_starts_the_generator(model_dir: Path) -> None:
    main(["generate", str(model_dir), "--prompt", "Hi", "--top-k", "5", "--seed", "7"])
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))


def test_chat_with_one_prompt(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(model_dir), "--prompt", "Capital?"]) == 0
    assert capsys.readouterr().out == ANSWER + "\n"
    assert [call["prompt"] for call in FakeAdapter.calls] == ["<user>Capital?<assistant>"]


def test_chat_remembers_the_conversation(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["One?", "  ", "Two?"])

    def answer_from_lines(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer_from_lines)
    assert main(["chat", str(model_dir)]) == 0
    assert [call["prompt"] for call in FakeAdapter.calls] == [
        "<user>One?<assistant>",
        f"<user>One?<assistant>{ANSWER}<user>Two?<assistant>",
    ]
    assert capsys.readouterr().out == f"{ANSWER}\n" * 2


def test_chat_without_a_template(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model_dir / "chat_template.jinja").unlink()
    assert main(["chat", str(model_dir)]) == 2
    assert "no chat template; use nxdi generate" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["compile", "generate", "chat"])
def test_missing_model_folder(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = {"compile": ["--out", str(tmp_path / "o")], "generate": ["--prompt", "x"], "chat": []}
    assert main([command, str(tmp_path / "absent"), *rest[command]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "no model folder" in error
    assert error.count("\n") == 1


def test_missing_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert main(["generate", str(tmp_path), "--prompt", "x"]) == 2
    assert "tokenizer cannot be loaded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("failure", "code"), [(BucketError("5000 is too long"), 2), (KeyboardInterrupt(), 130)]
)
def test_exit_codes(
    model_dir: Path, failure: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **keywords: Any) -> Any:
        raise failure

    monkeypatch.setattr(FakeAdapter, "generate", fail)
    assert main(["generate", str(model_dir), "--prompt", "x"]) == code


def test_an_unexpected_failure_keeps_its_traceback(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **keywords: Any) -> Any:
        raise RuntimeError("a defect")

    monkeypatch.setattr(FakeAdapter, "generate", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["generate", str(model_dir), "--prompt", "x"])


def test_convert_gguf_reports_a_bad_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"nothing")
    assert main(["convert-gguf", str(tmp_path / "bad.gguf"), str(tmp_path / "out")]) == 2
    assert "is not a GGUF file" in capsys.readouterr().err


def test_cache_ls_when_there_is_none(cache_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "ls"]) == 0
    assert capsys.readouterr().out == f"{cache_root}\n"


def test_cache_ls_shows_names_and_sizes(
    cache_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_two_artifacts(cache_root)
    assert main(["cache", "ls"]) == 0
    lines = [line.split()[2:] for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[-1] for line in lines] == ["artifacts/first", "artifacts/second", "pieces/"]
    assert lines[0][1] == "kB"
    assert lines[2][:2] == ["2.5", "MB"]


def test_cache_rm_removes_the_named_one(cache_root: Path) -> None:
    write_two_artifacts(cache_root)
    assert main(["cache", "rm", "artifacts/first"]) == 0
    assert not (cache_root / "artifacts" / "first").exists()
    assert (cache_root / "artifacts" / "second").exists()


def test_cache_rm_all(cache_root: Path) -> None:
    write_two_artifacts(cache_root)
    assert main(["cache", "rm", "--all"]) == 0
    assert [path for path in cache_root.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("name", ["artifacts/absent", "..", "../model", "pieces"])
def test_cache_rm_refuses_other_names(
    cache_root: Path, model_dir: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_two_artifacts(cache_root)
    assert main(["cache", "rm", name]) == 2
    assert "no artefact" in capsys.readouterr().err
    assert model_dir.exists()
    assert (cache_root / "pieces").exists()


def test_cache_rm_needs_a_name_or_all(cache_root: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["cache", "rm"])
    assert stop.value.code == 2


def test_cache_verify(cache_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_two_artifacts(cache_root)
    assert main(["cache", "verify"]) == 0
    (cache_root / "artifacts" / "second" / "graph.bin").write_bytes(b"z" * 1500)
    assert main(["cache", "verify", "artifacts/first"]) == 0
    capsys.readouterr()
    assert main(["cache", "verify"]) == 2
    shown = capsys.readouterr()
    assert [line.split()[:2] for line in shown.out.splitlines()] == [
        ["sound", "artifacts/first"],
        ["damaged", "artifacts/second:"],
    ]
    assert "nxdi cache rm artifacts/second" in shown.err


def test_cache_verify_of_an_unknown_name(
    cache_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "verify", "absent"]) == 2
    assert "nxdi cache ls" in capsys.readouterr().err

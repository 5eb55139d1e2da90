"""`nxdi bench` on a tiny model: what it measures, writes and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from byte_tokenizer import make_byte_tokenizer
from nxdi.cli import main
from nxdi.config import NeuronConfig
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.runtime.backends.eager import EagerBackend
from tiny_eagle import PlainHead
from tiny_medusa import fitted_heads, save_heads
from tiny_models import save_tiny, tiny_hf_model

Capture = pytest.CaptureFixture[str]
OPTIONS = ["--backend", "eager", "--seq-len", "32", "--num-runs", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tiny_hf_model("llama"), tmp_path_factory.mktemp("bench") / "tiny")


def test_figures_and_files(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "deep" / "report.json"
    assert main(["bench", str(folder), *OPTIONS, "--batch-size", "2", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 runs of 2 prompts with 16 tokens and 16 new tokens each"
    names = ["p50", "p90", "p95", "p99", "p100", "mean", "tokens/s"]
    assert lines[1].split() == ["ms", *names]
    assert [line[:32].strip() for line in lines[2:5]] == [
        "End to end",
        "Prefill (time to first token)",
        "Decode (per token)",
    ]
    figures = json.loads(out.read_text())["e2e_model"]
    assert lines[2].split()[-1] == f"{figures['throughput']:.1f}"
    files = [str(out.with_suffix(suffix)) for suffix in (".json", ".csv", ".html")]
    assert lines[5] == f"written: {' '.join(files)}"
    assert all(Path(file).stat().st_size for file in files)


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ("--prompt-len 30", (30, 2)),
        ("--new-tokens 30", (2, 30)),
        ("--prompt-len 5 --new-tokens 3", (5, 3)),
        ("--max-context-length 8", (8, 24)),
        ("--target context_encode --prompt-len 32", (32, 1)),
        ("--target token_gen --new-tokens 4", (16, 4)),
    ],
)
def test_what_is_left_open_fills_the_sequence(
    options: str, lengths: tuple[int, int], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.json"
    assert main(["bench", str(folder), *OPTIONS, *options.split(), "--out", str(out)]) == 0
    work = json.loads(out.read_text())["workload"]
    assert (work["prompt_len"], work["new_tokens"]) == lengths


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--prompt-len 40", "longer than seq_len=32"),
        ("--prompt-len 20 --new-tokens 20", "longer than seq_len=32"),
        ("--prompt-len 20 --max-context-length 8", "raise max_context_length"),
        ("--new-tokens 1", "leaves no decode step to measure"),
        ("--out r.csv", "give the JSON a name such as r.json"),
        ("--out .", "is a folder; name a file in it"),
        ("--recipe absent.yaml", "cannot read absent.yaml"),
    ],
)
def test_refusals_come_before_compiling(
    options: str,
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setattr(EagerBackend, "compile", lambda *_: pytest.fail("it compiles"))
    monkeypatch.setenv("NXDI_CACHE_DIR", str(tmp_path))
    assert main(["bench", str(folder), *OPTIONS, *options.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--num-runs", "--prompt-len", "--new-tokens"])
def test_a_number_out_of_range(option: str, folder: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", str(folder), option, "0"])
    assert stop.value.code == 2
    assert "is out of range: at least 1" in capsys.readouterr().err


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer of bytes."""
    path = tmp_path_factory.mktemp("bench") / "talking"
    save_tiny(tiny_hf_model("llama", vocab_size=256), path)
    make_byte_tokenizer("{{ messages[0].content }}").save_pretrained(path)
    return path


def speculation(folder: Path, tmp_path: Path, who: str, *more: str) -> int:
    """The exit code of a short comparison."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one two one two\n\nthree\n")
    options = [*OPTIONS[:-1], "1", "--new-tokens", "12", "--prompts", str(prompts), *more]
    return main(["bench", str(folder), *options, "--speculation", who])


def reported(text: str) -> tuple[list[list[str]], float]:
    """The rows by place, and the tokens per step."""
    lines = text.splitlines()
    assert lines[0].split() == ["place", "proposed", "kept"]
    assert lines[-2].startswith("tokens per step: ")
    assert lines[-1].startswith("speed-up over plain decoding: ")
    assert lines[-1].endswith(" tokens/s)")
    return [line.split() for line in lines[1:-2]], float(lines[-2].split()[3])


@pytest.mark.parametrize("who", ["lookup", "itself"])
def test_speculation(who: str, talking: Path, tmp_path: Path, capsys: Capture) -> None:
    length = ("--option", "speculation_length=3")
    assert speculation(talking, tmp_path, str(talking) if who == "itself" else who, *length) == 0
    rows, tokens_per_step = reported(capsys.readouterr().out)
    if who == "itself":
        assert [row[-1] for row in rows] == ["100%", "100%"]
        assert tokens_per_step > 2


@pytest.mark.parametrize("is_eagle3", [False, True])
def test_an_eagle_head(is_eagle3: bool, talking: Path, tmp_path: Path, capsys: Capture) -> None:
    PlainHead(tiny_hf_model("llama", vocab_size=256), is_eagle3).save(tmp_path)
    sampling = ("--option", 'on_device_sampling_config={"dynamic": true}')
    assert speculation(talking, tmp_path, str(tmp_path), *sampling) == 0
    rows, _ = reported(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[NeuronConfig]:
    """The options of all models that are loaded."""
    seen, load = [], NeuronBaseForCausalLM.load

    def seeing(self: NeuronBaseForCausalLM, *args: Any) -> None:
        seen.append(self.neuron_config)
        load(self, *args)

    monkeypatch.setattr(NeuronBaseForCausalLM, "load", seeing)
    return seen


@pytest.mark.parametrize("where", ["beside", "alone"])
def test_medusa_heads(
    where: str, talking: Path, tmp_path: Path, capsys: Capture, loaded: list[NeuronConfig]
) -> None:
    """All three of them; the other side of the comparison has none."""
    state = fitted_heads(tiny_hf_model("llama", vocab_size=256), [list(range(40))])
    model, heads = tmp_path / "model", tmp_path / "heads"
    shutil.copytree(talking, model)
    heads.mkdir()
    (heads / "config.json").write_text('{"medusa_num_heads": 5}')
    save_heads(model if where == "beside" else heads, state)
    assert speculation(model, tmp_path, "medusa" if where == "beside" else str(heads)) == 0
    rows, _ = reported(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [config.num_verified for config in loaded] == [4, 0]
    assert not loaded[1].is_medusa


def test_medusa_heads_as_a_tree(talking: Path, tmp_path: Path, capsys: Capture) -> None:
    state = fitted_heads(tiny_hf_model("llama", vocab_size=256), [list(range(40))])
    model = tmp_path / "model"
    shutil.copytree(talking, model)
    save_heads(model, state)
    heads = {"num_medusa_heads": 2, "medusa_speculation_length": 4}
    options = {**heads, "medusa_tree": [[0], [1], [0, 0]]}
    given = [word for name, value in options.items() for word in ("--option", f"{name}={value}")]
    assert speculation(model, tmp_path, "medusa", *given) == 0
    rows, _ = reported(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["1", "2"]


def test_a_draft_model_in_the_graphs(
    talking: Path, tmp_path: Path, capsys: Capture, loaded: list[NeuronConfig]
) -> None:
    fused = ("--option", "enable_fused_speculation=true", "--option", "speculation_length=3")
    assert speculation(talking, tmp_path, str(talking), *fused) == 0
    rows, _ = reported(capsys.readouterr().out)
    assert [row[-1] for row in rows] == ["100%", "100%"]
    assert [config.enable_fused_speculation for config in loaded] == [True, False]
    assert loaded[1].on_device_sampling


@pytest.mark.parametrize(
    ("who", "options", "reason"),
    [
        ("medusa", (), "has no weights of Medusa heads"),
        ("elsewhere", (), "elsewhere is no model folder"),
        ("lookup", ("--option", "enable_fused_speculation=true"), "on_device_sampling_config"),
    ],
)
def test_nobody_to_propose(
    who: str, options: tuple[str, ...], reason: str, talking: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert speculation(talking, tmp_path, who, *options) == 2
    assert reason in capsys.readouterr().err


def test_prompts_that_cannot_be_read(talking: Path, tmp_path: Path, capsys: Capture) -> None:
    options = [*OPTIONS, "--speculation", "lookup", "--prompts", str(tmp_path / "none.txt")]
    assert main(["bench", str(talking), *options]) == 2
    assert "none.txt cannot be read" in capsys.readouterr().err

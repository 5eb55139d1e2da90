"""The documents: their examples run as they stand, and their commands are ones that exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from nxdi import cli
from nxdi.cli import demo_options
from nxdi.config.recipe import load_recipe
from nxdi.kernels.sim.rules import RULES
from nxdi.models import registry
from tiny_eagle import PlainHead
from tiny_medusa import fitted_heads, save_heads
from tiny_models import save_tiny, tiny_hf_model

ROOT = Path(__file__).parents[2]
DOCS = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", DOCS[page], re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """The command lines that readers are to type; where some begin with "$ ", only those."""
    found = []
    for text in (text for page in DOCS for text in blocks(page, "console")):
        lines = [line.strip() for line in text.splitlines()]
        found += [line[2:] for line in lines if line.startswith("$ ")] or lines
    return found


def test_add_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worked example equals transformers."""
    monkeypatch.setattr(registry, "_REGISTERED", {})
    reference: Any = tiny_hf_model("qwen3")
    model_dir = save_tiny(reference, tmp_path / "model")
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(
        json.dumps({**config, "architectures": ["MyForCausalLM"]})
    )
    names: dict[str, Any] = {
        "model_dir": model_dir,
        "input_ids": torch.tensor([[5, 9, 3, 71, 20]]),
    }
    for block in blocks("add-a-model.md", "python"):
        exec(block, names)
    expected = reference.generate(names["input_ids"], max_new_tokens=20, do_sample=False)
    assert names["tokens"].tolist() == expected.tolist()


def test_speculation(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example runs, and all ways give the same tokens."""
    hf = tiny_hf_model("llama", vocab_size=256)
    folder = save_tiny(hf, tmp_path / "model")
    (tmp_path / "head").mkdir()
    save_heads(folder, fitted_heads(hf, [list(range(60))]))
    ids = byte_tokenizer("one two one two", return_tensors="pt")["input_ids"]
    names: dict[str, Any] = {
        "folder": folder,
        "draft_folder": folder,
        "head_folder": PlainHead(hf).save(tmp_path / "head"),
        "tokenizer": byte_tokenizer,
        "prompt": {"input_ids": ids, "do_sample": False},
    }
    for block in blocks("speculation.md", "python"):
        exec(block.replace("options = {", 'options = {"backend": "eager", '), names)
    assert torch.equal(names["tokens"], names["same"])
    assert float(capsys.readouterr().out) >= 1


def test_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """The examples run, one after the other, on a tiny model in the place of the real one."""
    folder = tmp_path / "SmolLM2-135M-Instruct"
    save_tiny(tiny_hf_model("llama", vocab_size=256), folder)
    byte_tokenizer.save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks("tools.md", "python"):
        exec(block, names)
    assert names["saved"].shape[0] == 1
    assert (tmp_path / "benchmark_report.html").exists()
    assert len(list((tmp_path / "snapshots").rglob("input_ids.npy"))) == 2
    assert (names["small"] / "config.json").exists()


def test_write_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worked kernel runs as a file, then what the page does with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    kernel, *steps = blocks("write-a-kernel.md", "python")
    (tmp_path / "my_kernels.py").write_text(kernel)
    names: dict[str, Any] = {}
    for block in steps:
        exec(block, names)
    assert torch.equal(names["result"], names["expected"])
    assert (tmp_path / "scaled_add.html").exists()


def test_every_rule_of_the_simulator_is_listed() -> None:
    listed = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (.*) \|$", DOCS["simulator.md"], re.MULTILINE))
    assert listed == {name: text.replace("|", "or") for name, text in RULES.items()}


def test_the_recipe_in_tools_is_the_one_in_the_repository(tmp_path: Path) -> None:
    (text,) = blocks("tools.md", "yaml")
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    assert load_recipe(file) == load_recipe(ROOT / "recipes" / "smollm2-135m.yaml")


@pytest.mark.parametrize("line", commands())
def test_a_command_exists(line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    parser = {"nxdi": cli.make_parser, "inference_demo": demo_options.make_parser}[program]()
    assert parser.parse_args(words) is not None


def test_every_subcommand_of_a_tool_is_in_tools() -> None:
    for name in ("info", "check", "bench", "doctor", "port", "lower"):
        assert f"\n## nxdi {name}\n" in DOCS["tools.md"]
        assert any(line.startswith(f"nxdi {name}") for line in commands())


def test_links_lead_somewhere() -> None:
    for name, text in DOCS.items():
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / "docs" / target).exists(), f"{name}: {target}"
        anchors = {
            re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
            for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        }
        assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors, name

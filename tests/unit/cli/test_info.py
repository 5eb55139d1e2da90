"""`nxdi info` on a tiny model: what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nxdi.cli import main
from tiny_models import save_tiny, tiny_hf_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tiny_hf_model("llama"), tmp_path_factory.mktemp("info") / "tiny")


def test_the_plan_as_text(folder: Path, capsys: Capture) -> None:
    options = "--backend eager --seq-len 256 --tp-degree 2 --dtype float32 --option fused_qkv=true"
    assert main(["info", str(folder), *options.split(), "--request", "100,50"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "tiny: NeuronLlamaForCausalLM, float32, 2 ranks, backend eager",
        "parameters  80,320",
        "weights     161.4 kB on each rank",
        "KV caches   65.8 kB on each rank",
        "  4 x float32 [1, 1, 257, 16]",
        "notes",
        "  lm_head.weight: 97 is padded with zeros to 98",
        "graphs",
        *(
            f"  {name}: input_ids [1, {length}], position_ids [1, {length}], seq_ids [1] -> logits"
            for name, length in (
                ("context_encoding_model_b1_s128", 128),
                ("context_encoding_model_b1_s256", 256),
                ("token_generation_model_b1_s128", 1),
                ("token_generation_model_b1_s256", 1),
            )
        ),
        "kernels",
        "  attend: reference explicit in all graphs",
        "    of layers.*.self_attn",
        "options without effect",
        "  fused_qkv=True: the projections stay separate, with equal results",
        "request: 1 prompt of 100 tokens, 50 new tokens",
        "  context_encoding_model_b1_s128: 1 step, token 1",
        "  token_generation_model_b1_s128: 28 steps, tokens 2 to 29",
        "  token_generation_model_b1_s256: 21 steps, tokens 30 to 50",
    ]


def test_kernels_of_the_cpu_backend(folder: Path, capsys: Capture) -> None:
    assert main(["info", str(folder), "--backend", "cpu", "--seq-len", "256"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  attend: kernel sdpa in all prefill graphs" in lines
    assert "  attend: kernel nxdi_cpu::attend_decode in all decode graphs" in lines
    assert lines[lines.index("  attend: kernel sdpa in all prefill graphs") + 1 :][:1] == [
        "    of layers.*.self_attn"
    ]


def test_json(folder: Path, capsys: Capture) -> None:
    assert main(["info", str(folder), "--backend", "eager", "--seq-len", "64", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["tp_degree"] == 1
    assert [graph["length"] for graph in info["graphs"]] == [64, 64]


def test_a_recipe_gives_way_to_the_command_line(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: tiny\nneuron_config: {seq_len: 64, backend: eager, batch_size: 3}\n")
    command = ["info", str(folder), "--recipe", str(recipe), "--json"]
    assert main([*command, "--batch-size", "2"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["backend"] == "eager"
    assert {(graph["length"], graph["batch_size"]) for graph in info["graphs"]} == {(64, 2)}
    recipe.write_text("model: tiny\nneuron_config: {seqlen: 64}\n")
    assert main(command) == 2
    assert "did you mean seq_len" in capsys.readouterr().err


@pytest.mark.parametrize("request_", ["5", "a,b", "1,2,3,4", "-1,5"])
def test_a_request_that_is_none(folder: Path, request_: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["info", str(folder), f"--request={request_}"])
    assert stop.value.code == 2
    assert "is not PROMPT_LEN,NEW_TOKENS" in capsys.readouterr().err


def test_a_request_that_does_not_fit(folder: Path, capsys: Capture) -> None:
    assert main(["info", str(folder), "--seq-len", "64", "--request", "60,60"]) == 2
    assert "longer than seq_len=64" in capsys.readouterr().err

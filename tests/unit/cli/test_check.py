"""`nxdi check` on a tiny model: verdicts, exit codes, what it prints and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from nxdi.cli import main
from nxdi.config import NeuronConfig
from nxdi.models import application_base
from nxdi.models.application_base import NeuronApplicationBase
from nxdi.models.decoder import Decoder
from nxdi.modules.attention.attention_base import NeuronAttentionBase
from nxdi.runtime.backends.eager import EagerBackend
from tiny_models import save_tiny, tiny_hf_model

SMALL = ["--seq-len", "32", "--prompt-len", "8", "--num-tokens", "3"]
EAGER = ["--backend", "eager", *SMALL]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tiny_hf_model("llama", vocab_size=256), tmp_path_factory.mktemp("check"))


@pytest.mark.parametrize("tp_degree", ["1", "2"])
def test_a_right_model(folder: Path, tp_degree: str, capsys: Capture) -> None:
    assert main(["check", str(folder), *EAGER, "--tp-degree", tp_degree, "--batch-size", "2"]) == 0
    modules = {"1": 29, "2": 19}[tp_degree]
    assert capsys.readouterr().out == (
        "agrees with transformers: 6 tokens (0 ties); 6 logits (0 ties); "
        f"{modules} modules within 2e-05\n"
    )


@pytest.mark.slow
def test_a_right_model_compiled(folder: Path, capsys: Capture) -> None:
    assert main(["check", str(folder), "--backend", "cpu", *SMALL]) == 0
    assert capsys.readouterr().out.startswith("agrees with transformers: 3 tokens (0 ties); 3 log")


def test_a_wrong_model(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    right = NeuronAttentionBase._scale
    monkeypatch.setattr(NeuronAttentionBase, "_scale", lambda self, *given: 2 * right(self, *given))
    assert main(["check", str(folder), *EAGER]) == 1
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert line.startswith(
        "diverges from transformers: generated token 0 (prefill, row 0, position 1): "
        "layers.0.self_attn introduces an error of "
    )
    assert "tolerance 2e-05, seen in what layers.0.self_attn.o_proj takes" in line


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Tensor], Tensor]) -> None:
    right = NeuronApplicationBase.get_state_dict

    def state(self: NeuronApplicationBase) -> dict[str, Tensor]:
        loaded = right(self)
        return {**loaded, name: change(loaded[name])}

    monkeypatch.setattr(NeuronApplicationBase, "get_state_dict", state)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("token", "tokens: generated token 0 of row 0: the reference chooses"),
        ("logit", "logits: generated token 0 of row 0: the logits of the likeliest tokens (5)"),
        ("layers", "lm_head introduces an error of"),
    ],
)
def test_one_mode(
    folder: Path, mode: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    spoil(monkeypatch, "lm_head.weight", lambda weight: weight.roll(1, 0))
    assert main(["check", str(folder), *EAGER, "--mode", mode]) == 1
    assert words in capsys.readouterr().out


def test_a_small_error_that_only_modules_show(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    spoil(monkeypatch, "norm.weight", lambda weight: weight * 1.001)
    assert main(["check", str(folder), *EAGER]) == 1
    line = capsys.readouterr().out
    assert "norm introduces an error of 0.001" in line
    assert "the logits agree, so the error is small" in line
    assert main(["check", str(folder), *EAGER, "--tolerance", "100"]) == 0


class WrongBackend(EagerBackend):
    """A stand-in for wrong compiled graphs: their logits stand one place off."""

    name = "cpu"


def test_a_fault_of_a_backend_is_not_blamed_on_a_module(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    right = Decoder.logits

    def wrong(self: Decoder, x: Tensor) -> Tensor:
        return right(self, x).roll(int(self.neuron_config.backend == WrongBackend.name), -1)

    def make_backend(config: NeuronConfig) -> EagerBackend:
        return EagerBackend() if config.backend == "eager" else WrongBackend()

    monkeypatch.setattr(Decoder, "logits", wrong)
    monkeypatch.setattr(application_base, "make_backend", make_backend)
    assert main(["check", str(folder), "--backend", "cpu", *SMALL]) == 1
    line = capsys.readouterr().out
    assert "logits: generated token 0 of row 0" in line
    assert "every module agrees in float32 on the eager backend, so look at the dtype" in line


def test_json(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert main(["check", str(folder), *EAGER, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["passed"] is True
    assert list(answer["modes"]) == ["token", "logit", "layers"]
    assert len(answer["modes"]["logit"]["details"][0]) == 3
    spoil(monkeypatch, "lm_head.weight", lambda weight: torch.full_like(weight, torch.nan))
    assert main(["check", str(folder), *EAGER, "--json", "--mode", "layers"]) == 1

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    answer = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert answer["passed"] is False
    details = answer["modes"]["layers"]["details"]
    assert (details["module"], details["layer"], details["error"]) == ("lm_head", None, "inf")
    assert answer["summary"].startswith("diverges from transformers: generated token 0")


def test_prompts_as_text(
    folder: Path, byte_tokenizer: PreTrainedTokenizerFast, capsys: Capture
) -> None:
    byte_tokenizer.save_pretrained(folder)
    assert (
        main(["check", str(folder), *EAGER[:4], "--num-tokens", "2", "--prompts", "a b", "c"]) == 0
    )
    assert capsys.readouterr().out.startswith("agrees with transformers: 4 tokens")
    assert main(["check", str(folder), *EAGER, "--ignore", "nothing"]) == 2
    assert "no module 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--num-tokens", "0"], "--num-tokens=0 must be at least 1"),
        (["--prompt-len", "-1"], "--prompt-len=-1 must be at least 1"),
        (["--tolerance", "0"], "--tolerance=0.0 must be more than 0"),
        (["--tolerance", "nan"], "--tolerance=nan must be more than 0"),
        (["--num-tokens", "64"], "longer than seq_len=32"),
        (["--prompts", "a", "b", "c", "--batch-size", "2"], "3 prompts do not fit --batch-size 2"),
        (["--prompts", ""], "a prompt is empty"),
    ],
)
def test_bad_requests(
    arguments: list[str],
    words: str,
    folder: Path,
    byte_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    byte_tokenizer.save_pretrained(folder)
    # The reference is loaded after that, and so is what would be compiled.
    monkeypatch.setattr(NeuronApplicationBase, "load_hf_model", lambda *_: pytest.fail("loaded"))
    assert main(["check", str(folder), "--backend", "eager", "--seq-len", "32", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_model_that_samples_in_the_graph(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: tiny\nneuron_config: {on_device_sampling_config: {dynamic: true}}\n")
    assert main(["check", str(folder), *EAGER, "--recipe", str(recipe)]) == 0
    assert "3 tokens (0 ties); 3 logits (0 ties); 29 modules" in capsys.readouterr().out


def test_an_architecture_of_ones_own_choice(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    config = json.loads((folder / "config.json").read_text())
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "model.safetensors").symlink_to(folder / "model.safetensors")
    (unknown / "config.json").write_text(
        json.dumps({**config, "architectures": ["NewForCausalLM"]})
    )
    assert main(["check", str(unknown), *EAGER]) == 2
    assert "NewForCausalLM" in capsys.readouterr().err
    assert main(["check", str(unknown), *EAGER, "--architecture", "generic"]) == 0


def test_no_model_folder(tmp_path: Path, capsys: Capture) -> None:
    assert main(["check", str(tmp_path)]) == 2
    assert "no model folder" in capsys.readouterr().err

"""`inference_demo` with NxDI's options on a tiny model, run eagerly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from nxdi.cli.demo_options import make_parser, neuron_keywords, sampling_keywords
from nxdi.cli.inference_demo import main
from nxdi.config import NeuronConfig, OnDeviceSamplingConfig
from nxdi.errors import ConfigError
from nxdi.generation.speculation import Counts
from nxdi.models.application_base import NeuronApplicationBase
from nxdi.runtime.backends.eager import EagerBackend
from tiny_eagle import PlainHead
from tiny_medusa import fitted_heads, save_heads
from tiny_models import save_tiny, tiny_hf_model

Capture = pytest.CaptureFixture[str]
PROMPTS = ("Hello, world", "Hi")
LENGTHS = "--seq-len 32 --max-context-length 16 --max-new-tokens 6"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tiny_hf_model("llama", vocab_size=256), tmp_path_factory.mktemp("demo"))


@pytest.fixture
def folder(saved: Path, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    byte_tokenizer.pad_token = byte_tokenizer.eos_token = "!"
    byte_tokenizer.save_pretrained(saved)
    return saved


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    return tmp_path / "compiled"


def words(folder: Path, compiled: Path, *options: str, prompts: tuple[str, ...]) -> list[str]:
    """A command line as NxDI's users write it."""
    paths = ["--model-path", str(folder), "--compiled-model-path", str(compiled)]
    return [
        *("--model-type", "llama", "--task-type", "causal-lm", "run", *paths),
        *("--backend", "eager", "--torch-dtype", "float32", *LENGTHS.split(), *options),
        *(word for prompt in prompts for word in ("--prompt", prompt)),
    ]


def run(folder: Path, compiled: Path, *options: str, prompts: tuple[str, ...] = PROMPTS[:1]) -> int:
    return main(words(folder, compiled, *options, prompts=prompts))


def answers(folder: Path, prompts: tuple[str, ...]) -> list[str]:
    """The lines to print: each prompt with transformers' greedy continuation."""
    model: Any = LlamaForCausalLM.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    lines = []
    for row, prompt in enumerate(prompts):
        ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
        lines.append(f"Output {row}: {tokenizer.decode(output[0], skip_special_tokens=True)}")
    return lines


def test_compile_load_and_generate(folder: Path, compiled: Path, capsys: Capture) -> None:
    assert run(folder, compiled) == 0
    assert capsys.readouterr().out.split("\n") == [
        "Compiling and saving model...",
        "Loading model...",
        "Generated outputs:",
        *"\n".join(answers(folder, PROMPTS[:1])).split("\n"),
        "",
    ]
    assert PreTrainedTokenizerFast.from_pretrained(compiled).pad_token == "!"


@pytest.mark.parametrize("side", ["left", "right"])
def test_several_prompts(side: str, folder: Path, compiled: Path, capsys: Capture) -> None:
    options = ("--batch-size", "2", "--padding-side", side)
    assert run(folder, compiled, *options, prompts=PROMPTS) == 0
    printed = capsys.readouterr().out
    for line in answers(folder, PROMPTS):
        assert line in printed


def test_compile_only_and_then_skip_compile(folder: Path, compiled: Path, capsys: Capture) -> None:
    assert run(folder, compiled, "--compile-only", prompts=()) == 0
    assert capsys.readouterr().out == "Compiling and saving model...\n"
    written = (compiled / "manifest.json").stat().st_mtime_ns
    assert run(folder, compiled, "--skip-compile") == 0
    assert capsys.readouterr().out.startswith("Loading model...\nGenerated outputs:\n")
    assert (compiled / "manifest.json").stat().st_mtime_ns == written
    # What was compiled for something else is not loaded.
    assert run(folder, compiled, "--skip-compile", "--tp-degree", "2") == 2
    assert "tp_degree: built for 1, asked for 2" in capsys.readouterr().err


def test_skip_compile_with_nothing_compiled(folder: Path, compiled: Path, capsys: Capture) -> None:
    assert run(folder, compiled, "--skip-compile") == 2
    assert "no compiled artefact" in capsys.readouterr().err


def test_the_length_is_by_default_what_was_compiled(
    folder: Path, compiled: Path, capsys: Capture
) -> None:
    assert run(folder, compiled, "--max-new-tokens", "0", "--max-context-length", "32") == 0
    text = capsys.readouterr().out.partition("Output 0: ")[2]
    assert len(PreTrainedTokenizerFast.from_pretrained(folder)(text[:-1]).input_ids) > 20


@pytest.mark.parametrize("mode", ["token-matching", "logit-matching"])
def test_accuracy_modes(
    mode: str, folder: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    options = ("--batch-size", "2", "--check-accuracy-mode", mode)
    assert run(folder, compiled, *options, "--num-tokens-to-check", "4", prompts=PROMPTS) == 0
    kind = mode.partition("-")[0]
    printed = capsys.readouterr().out
    assert f"Checking accuracy by {kind} matching\nThe model is accurate\n" in printed

    right = NeuronApplicationBase.get_state_dict

    def spoilt(self: NeuronApplicationBase) -> dict[str, Tensor]:
        state = right(self)
        return {**state, "lm_head.weight": state["lm_head.weight"].roll(1, 0)}

    monkeypatch.setattr(NeuronApplicationBase, "get_state_dict", spoilt)
    assert run(folder, compiled, *options, prompts=PROMPTS) == 1
    shown = capsys.readouterr()
    assert "error: generated token 0 of row 0: the " in shown.err
    assert "Generated outputs" not in shown.out


def test_the_tolerances_are_used(
    folder: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    right = NeuronApplicationBase.get_state_dict

    def spoilt(self: NeuronApplicationBase) -> dict[str, Tensor]:
        state = right(self)
        return {**state, "lm_head.weight": 1.1 * state["lm_head.weight"]}

    monkeypatch.setattr(NeuronApplicationBase, "get_state_dict", spoilt)
    options = ("--check-accuracy-mode", "logit-matching")
    assert run(folder, compiled, *options) == 1
    assert "the likeliest tokens (5)" in capsys.readouterr().err
    assert run(folder, compiled, *options, "--tol-map", "{None: (1e-5, 0.2)}") == 0


def test_benchmark(folder: Path, compiled: Path, tmp_path: Path, capsys: Capture) -> None:
    report = tmp_path / "report.json"
    options = ("--benchmark", "--num-runs", "2", "--benchmark-report-path", str(report))
    assert run(folder, compiled, *options) == 0
    printed = capsys.readouterr().out
    _, _, figures = printed.partition("Benchmark completed and its result is as following\n")
    written = json.loads(report.read_text())
    assert json.loads(figures) == {name: written[name] for name in json.loads(figures)}
    assert written["workload"] == {
        "prompt_len": 16,
        "new_tokens": 6,
        "num_rows": 1,
        "num_runs": 2,
    }
    assert report.with_suffix(".html").exists()


def test_sampling_in_the_graph_and_on_the_host(
    folder: Path, compiled: Path, capsys: Capture
) -> None:
    def text(*options: str) -> str:
        torch.manual_seed(0)
        assert run(folder, compiled, *options) == 0
        return capsys.readouterr().out.partition("Generated outputs:\n")[2]

    greedy = text()
    assert text("--on-device-sampling") == greedy
    assert text("--do-sample", "--temperature", "0") == greedy
    drawn = ("--do-sample", "--top-k", "-1", "--temperature", "5")
    assert text(*drawn) != greedy
    assert text("--on-device-sampling", *drawn) != greedy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--is-medusa", "is_medusa=True with num_medusa_heads=0"),
        ("--quantized --quantization-type blockwise_symmetric", "must be two integers"),
        ("--is-medusa --num-medusa-heads 2 --medusa-speculation-length 3", "no weights of Medusa"),
        ("--speculation-length 3", "--speculation-length is for what a draft model"),
        ("--enable-eagle-speculation", "--enable-eagle-speculation is for what a draft model"),
        ("--draft-model-tp-degree 2", "--draft-model-tp-degree is for what a draft model"),
        ("--draft-model-path elsewhere", "elsewhere is no model folder"),
        ("--enable-prefix-caching", "set is_block_kv_layout=True"),
        ("--skip-compile --compile-only", "leave nothing to do"),
        ("--max-new-tokens 40", "max_new_tokens=40 is not between 1 and max_length=32"),
        ("--max-new-tokens 30", "longer than seq_len=32"),
        ("--max-context-length 8", "raise max_context_length"),
        ("--top-p 2", "top_p=2.0 is not in (0, 1]"),
        ("--on-device-sampling --top-k -2", "top_k=-2 is below -1"),
        ("--on-device-sampling --check-accuracy-mode logit-matching", "add --output-logits"),
        ("--benchmark --benchmark-report-path report.html", "such as report.json"),
        ("--pad-token-id 999", "pad"),
    ],
)
def test_refusals_come_before_compiling(
    options: str,
    message: str,
    folder: Path,
    compiled: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setattr(EagerBackend, "compile", lambda *_: pytest.fail("it compiles"))
    given = ("--batch-size", "2", *options.split())
    assert run(folder, compiled, *given, prompts=PROMPTS) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "with --speculation-length 0 proposes nothing; make it 2"),
        ("--speculation-length 3", "give --compiled-draft-model-path, a folder for them"),
        (
            "--speculation-length 3 --compiled-draft-model-path DRAFT --benchmark",
            "--benchmark measures one model",
        ),
        (
            "--speculation-length 3 --compiled-draft-model-path DRAFT --enable-eagle-speculation",
            "holds a draft model; run without --enable-eagle-speculation and without --is-eagle3",
        ),
        ("--speculation-length 1 --compiled-draft-model-path DRAFT", "make it 2 or more (5, say)"),
        ("--speculation-length 3 --enable-fused-speculation", "set on_device_sampling_config"),
        (
            "--speculation-length 3 --enable-fused-speculation --compiled-draft-model-path DRAFT",
            "the draft model is in the target's graphs; leave it out",
        ),
        (
            "--speculation-length 3 --enable-fused-speculation --on-device-sampling "
            "--draft-model-tp-degree 2",
            "tp_degree",
        ),
    ],
)
def test_draft_models_that_are_refused(
    options: str,
    message: str,
    folder: Path,
    compiled: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setattr(EagerBackend, "compile", lambda *_: pytest.fail("it compiles"))
    given = options.replace("DRAFT", str(compiled / "draft")).split()
    assert run(folder, compiled, "--draft-model-path", str(folder), *given) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("degree", ["1", "2"])
def test_a_draft_model_beside(
    degree: str, folder: Path, compiled: Path, tmp_path: Path, capsys: Capture
) -> None:
    own = tmp_path / "own"
    draft = ("--draft-model-path", str(folder), "--compiled-draft-model-path", str(own))
    options = (*draft, "--speculation-length", "3", "--draft-model-tp-degree", degree)
    options += ("--check-accuracy-mode", "token-matching", "--num-tokens-to-check", "4")
    assert run(folder, compiled, *options) == 0
    expected = [
        *("Compiling and saving model...", "Compiling and saving draft model..."),
        *("Loading model...", "Loading draft model..."),
        *("Checking accuracy by token matching", "The model is accurate", "Generated outputs:"),
        *answers(folder, PROMPTS[:1]),
    ]
    assert capsys.readouterr().out.splitlines() == "\n".join(expected).splitlines()
    manifest = json.loads((own / "manifest.json").read_text())
    assert manifest["config"]["neuron_config"]["tp_degree"] == int(degree)


def proposed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens are proposed, in each step to come."""
    found, add = [], Counts.add

    def adding(self: Counts, num_proposed: int, num_kept: int) -> None:
        found.append(num_proposed)
        add(self, num_proposed, num_kept)

    monkeypatch.setattr(Counts, "add", adding)
    return found


@pytest.mark.parametrize("is_eagle3", [False, True])
def test_an_eagle_head_beside(
    is_eagle3: bool,
    folder: Path,
    compiled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    steps, head = proposed(monkeypatch), tmp_path / "head"
    head.mkdir()
    PlainHead(tiny_hf_model("llama", vocab_size=256), is_eagle3).save(head)
    options = ["--draft-model-path", str(head), "--compiled-draft-model-path", str(tmp_path / "h")]
    options += ["--speculation-length", "3", "--enable-eagle-speculation", "--on-device-sampling"]
    assert run(folder, compiled, *options, *["--is-eagle3"] * is_eagle3) == 0
    assert "\n".join(answers(folder, PROMPTS[:1])) in capsys.readouterr().out
    assert max(steps) == 2


def test_a_head_is_announced(folder: Path, compiled: Path, tmp_path: Path, capsys: Capture) -> None:
    for is_eagle3, flags, message in (
        (False, "", "holds an EAGLE head; run with --enable-eagle-speculation and without"),
        (True, "--enable-eagle-speculation", "holds an EAGLE-3 head; run with --enable-eagle-spec"),
    ):
        head = tmp_path / str(is_eagle3)
        head.mkdir()
        PlainHead(tiny_hf_model("llama", vocab_size=256), is_eagle3).save(head)
        options = ("--draft-model-path", str(head), "--speculation-length", "3", *flags.split())
        assert run(folder, compiled, *options) == 2
        assert message in capsys.readouterr().err


def test_a_draft_model_in_the_graphs(
    folder: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    steps = proposed(monkeypatch)
    options = ("--draft-model-path", str(folder), "--speculation-length", "3")
    options += ("--enable-fused-speculation", "--on-device-sampling", "--tp-degree", "2")
    assert run(folder, compiled, *options, "--draft-model-tp-degree", "1") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Compiling and saving model...\nLoading model...\nGenerated")
    assert "\n".join(answers(folder, PROMPTS[:1])) in printed
    assert max(steps) == 2
    config = json.loads((compiled / "neuron_config.json").read_text())
    assert config["fused_spec_config"]["draft_config"]["neuron_config"]["tp_degree"] == 1


def test_medusa_heads(
    folder: Path,
    compiled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    steps, model = proposed(monkeypatch), tmp_path / "model"
    shutil.copytree(folder, model)
    reference = tiny_hf_model("llama", vocab_size=256)
    save_heads(model, fitted_heads(reference, [list(range(40))]))
    tree = tmp_path / "tree.json"
    tree.write_text("[[0], [1], [0, 0]]")
    options = ("--is-medusa", "--num-medusa-heads", "3", "--medusa-speculation-length", "4")
    assert run(model, compiled, *options, "--medusa-tree-json", str(tree)) == 0
    assert "\n".join(answers(folder, PROMPTS[:1])) in capsys.readouterr().out
    assert max(steps) == 2


def test_the_wrong_model_type(folder: Path, compiled: Path, capsys: Capture) -> None:
    line = words(folder, compiled, prompts=PROMPTS)
    line[1] = "qwen2"
    assert main(line) == 2
    assert "model_type='llama', not 'qwen2'; correct --model-type" in capsys.readouterr().err


def test_too_many_prompts(folder: Path, compiled: Path, capsys: Capture) -> None:
    assert run(folder, compiled, prompts=PROMPTS) == 2
    assert "2 prompts do not fit batch_size=1; give fewer, or raise" in capsys.readouterr().err


def test_no_prompt(folder: Path, compiled: Path, capsys: Capture) -> None:
    assert run(folder, compiled, prompts=()) == 2
    assert "no --prompt to continue" in capsys.readouterr().err


def test_no_model_folder(tmp_path: Path, compiled: Path, capsys: Capture) -> None:
    assert run(tmp_path / "absent", compiled) == 2
    assert "is no model folder" in capsys.readouterr().err


def test_no_tokenizer(folder: Path, compiled: Path, capsys: Capture) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert run(folder, compiled) == 2
    assert "its tokenizer cannot be loaded" in capsys.readouterr().err


def test_interrupted(folder: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(EagerBackend, "compile", interrupt)
    assert run(folder, compiled) == 130
    assert not compiled.exists()


def parse(*options: str) -> Any:
    return make_parser().parse_args(words(Path("m"), Path("c"), *options, prompts=()))


def test_options_become_keywords_of_the_config() -> None:
    keywords = neuron_keywords(
        parse(
            *("--tp-degree", "2", "--enable-bucketing", "--context-encoding-buckets", "8", "16"),
            *("--no-fused-qkv", "--enable-prefix-caching", "--on-device-sampling", "--dynamic"),
            *("--is_continuous_batching", "--lora-config", '{"max_loras": 1}'),
        )
    )
    assert keywords == {
        "backend": "eager",
        "torch_dtype": "float32",
        "seq_len": 32,
        "max_context_length": 16,
        "max_new_tokens": 6,
        "tp_degree": 2,
        "enable_bucketing": True,
        "context_encoding_buckets": [8, 16],
        "fused_qkv": False,
        "is_prefix_caching": True,
        "is_continuous_batching": True,
        "lora_config": {"max_loras": 1},
        "on_device_sampling_config": {"dynamic": True},
    }


def test_every_option_of_the_configs_can_be_given() -> None:
    names = {f"config.{name}" for name in NeuronConfig.__dataclass_fields__}
    names |= {f"sampling.{name}" for name in OnDeviceSamplingConfig.__dataclass_fields__}
    names -= {"config.on_device_sampling_config", "sampling.on_device_sampling_config"}
    (commands,) = (action for action in make_parser()._actions if action.dest == "==SUPPRESS==")
    assert names <= {action.dest for action in commands.choices["run"]._actions}


def test_options_become_keywords_of_generate() -> None:
    assert sampling_keywords(parse()) == {"do_sample": False}
    drawn = parse("--do-sample", "--top-k", "-1", "--top-p", "0.5", "--pad-token-id", "3")
    assert sampling_keywords(drawn) == {
        "do_sample": True,
        "top_k": 0,
        "top_p": 0.5,
        "pad_token_id": 3,
    }
    with pytest.raises(ConfigError, match="temperature=-1"):
        sampling_keywords(parse("--temperature", "-1"))


@pytest.mark.parametrize(
    "options",
    [
        ("--check-accuracy-mode", "draft-logit-matching"),
        ("--num-runs", "0"),
        ("--num-tokens-to-check", "0"),
        ("--divergence-difference-tol", "-1"),
        ("--tol-map", "{5: 0.1}"),
        ("--tol-map", "{'5': (0.1, 0.1)}"),
        ("--tol-map", "{0: (0.1, 0.1)}"),
        ("--tol-map", "{}"),
        ("--tol-map", "__import__('os')"),
        ("--medusa-tree-json", "absent.json"),
        ("--draft-model-tp-degree", "0"),
        ("--seq-leng", "5"),
        ("--seq", "5"),
        ("--tp-degree", "two"),
    ],
)
def test_what_the_parser_refuses(options: tuple[str, str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(*options)
    assert stop.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_help_names_the_options_of_the_config(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--model-type", "llama", "--task-type", "causal-lm", "run", "--help"])
    assert stop.value.code == 0
    assert "--context-encoding-buckets" in capsys.readouterr().out

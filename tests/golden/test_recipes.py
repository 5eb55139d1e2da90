"""Each recipe, on the model it is for as far as its published config goes, and on a tiny one."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nxdi.cli import main
from nxdi.config.recipe import load_recipe
from nxdi.tools.model_info import describe
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter
from tiny_models import VOCAB_SIZE, load_app, save_tiny, tiny_hf_model

ROOT = Path(__file__).parents[2]
RECIPES = {file.stem: file for file in sorted((ROOT / "recipes").iterdir())}

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def shape(
    hidden: int, intermediate: int, layers: int, heads: tuple[int, int], vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocab,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_theta": 500000.0,
        **more,
    }


# recipe -> family, the published config.json as far as it counts, the published parameter count
PUBLISHED: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama-3.1-8b-tp8": (
        "llama",
        shape(4096, 14336, 32, (32, 8), 128256, rope_scaling={**_LLAMA3_ROPE, "factor": 8.0}),
        8_030_261_248,
    ),
    "llama-3.2-1b": (
        "llama",
        shape(
            *(2048, 8192, 16, (32, 8), 128256),
            rope_scaling={**_LLAMA3_ROPE, "factor": 32.0},
            tie_word_embeddings=True,
        ),
        1_235_814_400,
    ),
    "llama-3.3-70b-tp32": (
        "llama",
        shape(8192, 28672, 80, (64, 8), 128256, rope_scaling={**_LLAMA3_ROPE, "factor": 8.0}),
        70_553_706_496,
    ),
    "mistral-7b-tp4": (
        "mistral",
        shape(4096, 14336, 32, (32, 8), 32768, rope_theta=1e6, sliding_window=None),
        7_248_023_552,
    ),
    "qwen2-7b-tp4": (
        "qwen2",
        shape(3584, 18944, 28, (28, 4), 152064, rope_theta=1e6),
        7_615_616_512,
    ),
    "qwen2.5-0.5b": (
        "qwen2",
        shape(896, 4864, 24, (14, 2), 151936, rope_theta=1e6, tie_word_embeddings=True),
        494_032_768,
    ),
    "smollm2-135m": (
        "llama",
        shape(576, 1536, 30, (9, 3), 49152, rope_theta=1e5, tie_word_embeddings=True),
        134_515_008,
    ),
}
ARCHITECTURES = {name: f"{name.title()}ForCausalLM" for name in ("llama", "mistral", "qwen2")}
TINY: dict[str, Any] = {"intermediate_size": 112, "num_hidden_layers": 2, "vocab_size": VOCAB_SIZE}
HEAD_DIM, NEW_TOKENS = 8, 8


def test_every_recipe_is_tested() -> None:
    assert RECIPES.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_fits_the_model_it_names(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Kernels do not depend on the recipe, and naming them takes nearly all of the time.
    monkeypatch.setattr(describe, "preview_kernels", lambda *_: defaultdict(list))
    family, config, num_parameters = PUBLISHED[name]
    named = {"model_type": family, "architectures": [ARCHITECTURES[family]], "dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps({**config, **named}))
    assert main(["info", str(tmp_path), "--recipe", str(RECIPES[name]), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["num_parameters"] == num_parameters
    assert info["no_op_options"] == []
    options = load_recipe(RECIPES[name])
    assert info["tp_degree"] == options.get("tp_degree", 1)
    assert max(graph["length"] for graph in info["graphs"]) == options["seq_len"]
    # The heads divide by the ranks, or are copied to several: nothing is computed for padding.
    assert not any("zeros" in note and "heads" in note for note in info["notes"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_runs(name: str, tmp_path: Path) -> None:
    """On a model with the same heads, and few of everything else: transformers' tokens."""
    family, config, _ = PUBLISHED[name]
    options = load_recipe(RECIPES[name])
    hidden_size = HEAD_DIM * config["num_attention_heads"]
    reference: Any = tiny_hf_model(family, **{**config, **TINY, "hidden_size": hidden_size})
    reference = reference.to(getattr(torch, options["torch_dtype"]))
    app = load_app(save_tiny(reference, tmp_path / "model"), **options)
    ids = torch.randint(
        VOCAB_SIZE, (app.neuron_config.batch_size, 21), generator=torch.Generator().manual_seed(0)
    )
    request = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "attention_mask": ids >= 0}
    expected = reference.float().generate(ids, **request)
    assert len(expected[:, 21:].unique()) > NEW_TOKENS // 2
    assert HuggingFaceGenerationAdapter(app).generate(ids, **request).tolist() == expected.tolist()


def test_a_recipe_names_its_model() -> None:
    for name, file in RECIPES.items():
        model = yaml.safe_load(file.read_text())["model"].lower()
        assert name.partition("-tp")[0] in model


@pytest.mark.slow
def test_smollm2_as_its_recipe_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from fetch_smollm2 import fetch_smollm2
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, prompt = fetch_smollm2(), "The largest planet of the solar system is"
    recipe = str(RECIPES["smollm2-135m"])
    answer = ["--prompt", prompt, "--max-new-tokens", "32", "--no-stream"]
    assert main(["generate", str(folder), "--recipe", recipe, *answer]) == 0
    printed = capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    text = tokenizer.decode(expected[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert len(set(text.split())) > 10
    assert printed == f"{text}\n"

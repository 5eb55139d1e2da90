"""A draft model in the graph gives transformers' tokens: any batch, tp degree and length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from golden.parity import BUCKETS, NEW_TOKENS, Reference, check_seeded, load
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.models.llama.modeling_llama import NeuronLlamaForCausalLM
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter
from tiny_models import (
    COMPILED,
    load_fused,
    loaded,
    make_app,
    make_fused,
    near,
    save_tiny,
    tiny_hf_model,
)

Get = Callable[[str], Reference]

BATCHES = {1: [17], 2: [31, 1], 4: [1, 16, 33, 63]}
ALL = [(batch, tp, length) for batch in BATCHES for tp in (1, 2) for length in range(2, 8)]
SAMPLES: dict[str, Any] = {"on_device_sampling_config": {"dynamic": True}}


def check(reference: Reference, model: NeuronBaseForCausalLM, lengths: list[int]) -> list[str]:
    """Returns: the graphs that ran, but for those of prompts."""
    names: list[str] = []
    model.runner.observers.append(lambda spec, inputs: names.append(spec.name))
    ids, mask = reference.batch(lengths, "left")
    out = HuggingFaceGenerationAdapter(model).generate(
        ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False
    )
    for row, length in enumerate(lengths):
        assert torch.equal(out[row, -NEW_TOKENS:], reference.tokens[length])
    return [name for name in names if not name.startswith("context_encoding_model")]


def drafts(reference: Reference, family: str) -> list[Path]:
    """One that is always right, one now and then, one hardly ever, which is of another size."""
    other = tiny_hf_model("llama", seed=9, hidden_size=32, num_hidden_layers=1)
    made = {"near": near(tiny_hf_model(family)), "other": other}
    folders = [save_tiny(model, reference.folder / name) for name, model in made.items()]
    return [reference.folder, *folders]


def walk(reference: Reference, family: str, cases: list[tuple[int, int, int]], **own: Any) -> None:
    folders = drafts(reference, family)
    for index, (batch_size, tp, length) in enumerate(cases):
        sizes = {"batch_size": batch_size, "tp_degree": tp, "speculation_length": length}
        for folder in folders if len(cases) > 1 else folders[:2]:
            draft = {"tp_degree": 1 if index % 2 else tp}
            options = {**BUCKETS, **sizes, **own, "draft_options": draft}
            model = load_fused(reference.folder, folder, **options)
            names = check(reference, model, BATCHES[batch_size])
            assert any(name.startswith("fused_speculation_model") for name in names)
            if folder == reference.folder:
                assert len(names) <= 1 + -(-(NEW_TOKENS - 1) // length)


@pytest.mark.parametrize(
    ("family", "case"),
    [
        ("llama", (2, 2, 4)),
        pytest.param("mistral", (4, 1, 3), marks=pytest.mark.slow),
        pytest.param("llama", (1, 1, 7), marks=pytest.mark.slow),
    ],
)
def test_tokens_are_those_of_transformers(
    family: str, case: tuple[int, int, int], reference_of: Get
) -> None:
    walk(reference_of(family), family, [case])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mistral", "mixtral", "gpt_oss"])
def test_every_batch_degree_and_length(family: str, reference_of: Get) -> None:
    walk(reference_of(family), family, ALL if family == "llama" else ALL[1::7])


@pytest.mark.slow
@pytest.mark.parametrize(
    "own",
    [
        {"is_block_kv_layout": True, "pa_block_size": 8},
        {"is_block_kv_layout": True, "pa_block_size": 8, "is_prefix_caching": True},
        {"windowed_context_encoding_size": 16},
        {"token_generation_buckets": [4, 20, 96]},  # one as long as a step
    ],
)
def test_other_caches(own: dict[str, Any], reference_of: Get) -> None:
    walk(reference_of("llama"), "llama", [(2, 2, 4), (4, 1, 3)], **own)


@pytest.mark.slow
@pytest.mark.parametrize("quantized", ["target", "draft", "both"])
def test_rounded_weights(quantized: str, reference_of: Get) -> None:
    """Against its own decoding: rounded weights have other tokens than transformers'."""
    reference = reference_of("llama")
    rounded = {"quantized": True, "quantization_type": "per_channel_symmetric"}
    own, draft = ({} if quantized == name else rounded for name in ("draft", "target"))
    plain = load(reference, 2, batch_size=2, **own)
    options = {**BUCKETS, "batch_size": 2, "tp_degree": 2, **own}
    fused = load_fused(reference.folder, reference.folder, **options, draft_options=draft)
    ids, mask = reference.batch([31, 1], "left")
    asked = {"attention_mask": mask, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    found, expected = (
        HuggingFaceGenerationAdapter(model).generate(ids, **asked) for model in (fused, plain)
    )
    assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("tp_degree", [1, 2])
def test_random_prompts_sampled_with_seeds(tp_degree: int, reference_of: Get) -> None:
    """The tokens of plain decoding with the same seeds, up to the end of each row's room."""
    reference = reference_of("llama")
    folder = drafts(reference, "llama")[1]
    sizes: dict[str, Any] = {"seq_len": 24, "max_context_length": 12, "batch_size": 4}
    options = {**sizes, **SAMPLES, "tp_degree": tp_degree}
    plain = loaded(make_app(reference.folder, **options), reference.folder / "sampling")
    fused = load_fused(reference.folder, folder, **options)
    check_seeded(fused, plain)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("tp_degree", [1, 2])
def test_compiled_graphs(tp_degree: int, reference_of: Get, tmp_path: Path) -> None:
    """Saved, and loaded by an application that knows only the artefact."""
    reference = reference_of("llama")
    folder = drafts(reference, "llama")[1]
    options = {**COMPILED, "tp_degree": tp_degree, "speculation_length": 3}
    made = make_fused(reference.folder, folder, **options, draft_options={"tp_degree": 1})
    made.compile(tmp_path / "artifact", progress=False)
    model = NeuronLlamaForCausalLM(tmp_path / "artifact")
    model.load(tmp_path / "artifact")
    names = check(reference, model, [31, 1])
    assert sum(name.startswith("fused_speculation_model") for name in names) > 8

"""vLLM's `speculative_config` changes no token, whoever proposes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nxdi.errors import UnsupportedError, WeightError
from nxdi.runtime.checkpoint import write_safetensors
from tiny_eagle import PlainHead
from tiny_medusa import fitted_heads, vllm_names
from tiny_models import near, save_tiny
from vllm_plugin.conftest import save_tokenizer

METHODS: dict[str, dict[str, Any]] = {
    "ngram": {"method": "ngram", "prompt_lookup_max": 3, "prompt_lookup_min": 2},
    "draft_model": {"method": "draft_model"},
    "eagle": {"method": "eagle"},
    "eagle3": {"method": "eagle3"},
    "medusa": {"method": "medusa"},
}
HEAD = ("0.linear.weight", "0.linear.bias", "1.weight")  # of a head with one residual block
LAYOUTS: dict[str, dict[str, Any]] = {
    "rows": {},
    "chunks of prefixes": {
        "block_size": 8,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 24,
    },
}
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 0.8, "seed": 5},
    "host": {"temperature": 0.8, "seed": 5, "repetition_penalty": 1.2, "logprobs": 2},
    "choice": {"temperature": 0, "choice": ["yes, of course", "no, thank you"]},
}


@pytest.fixture(scope="session")
def drafts(tmp_path_factory: pytest.TempPathFactory, reference: Any) -> dict[str, Path]:
    """The folders of those who propose, by method."""
    folders = {name: tmp_path_factory.mktemp(name) for name in METHODS if name != "ngram"}
    save_tiny(near(reference), folders["draft_model"])
    PlainHead(reference).save(folders["eagle"])
    PlainHead(reference, is_eagle3=True).save(folders["eagle3"])
    for folder in folders.values():
        save_tokenizer(folder)
    save_medusa(folders["medusa"], heads_of(reference))
    return folders


@torch.no_grad()
def heads_of(reference: Any) -> dict[str, torch.Tensor]:
    """Three heads that know how the answers go on."""
    prompt_ids = [prompt["prompt_token_ids"] for prompt in prompts()[:3]]
    sequences = [
        reference.generate(torch.tensor([ids]), max_new_tokens=60, do_sample=False)[0].tolist()
        for ids in prompt_ids
    ]
    return fitted_heads(reference, sequences)


def save_medusa(folder: Path, heads: dict[str, torch.Tensor]) -> None:
    """A folder of heads as vLLM reads it."""
    config = {"model_type": "medusa", "num_hidden_layers": 1, "vocab_size": 257, "num_heads": 3}
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", vllm_names(heads))


def speculative(method: str, drafts: dict[str, Path]) -> dict[str, Any]:
    config = {**METHODS[method], "num_speculative_tokens": 3}
    return config if method == "ngram" else {**config, "model": str(drafts[method])}


def prompts() -> list[dict[str, list[int]]]:
    """Some repeat themselves, some begin alike, one is nearly as long as a sequence may be."""
    draw = torch.Generator().manual_seed(3)
    shared = torch.randint(0, 94, (20,), generator=draw).tolist()
    found = [[*shared, *shared[:9]], [5], [*shared, 7, 7, 7, 7, 7], shared * 6]
    return [{"prompt_token_ids": prompt} for prompt in found]


def params(choice: list[str] | None = None, **options: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    structured = None if choice is None else StructuredOutputsParams(choice=choice)
    return SamplingParams(max_tokens=14, structured_outputs=structured, **options)


def answers(llm: Any) -> list[tuple[list[int], Any]]:
    """Tokens of every prompt with every kind of sampling, all at once; and their logarithms."""
    kinds = [params(**options) for options in SAMPLING.values()]
    inputs = [(prompt, kind) for kind in kinds for prompt in prompts()]
    outputs = llm.generate([p for p, _ in inputs], [k for _, k in inputs], use_tqdm=False)
    found = []
    for output in outputs:
        text = output.outputs[0]
        scores = [
            sorted((token, round(found.logprob, 3)) for token, found in place.items())
            for place in text.logprobs or ()
        ]
        found.append((list(text.token_ids), scores))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_answers_are_those_without(
    layout: str, make_llm: Callable[..., Any], drafts: dict[str, Path]
) -> None:
    plain = answers(make_llm(**LAYOUTS[layout]))
    for method in METHODS:
        llm = make_llm(speculative_config=speculative(method, drafts), **LAYOUTS[layout])
        assert answers(llm) == plain, method


def counted(llm: Any) -> list[Any]:
    """The calls that verify proposals, from now on."""
    runner = llm.llm_engine.model_executor.driver_worker.worker.runner
    calls, verify = [], runner.model.verify

    def counting(**inputs: Any) -> Any:
        calls.append(inputs)
        return verify(**inputs)

    runner.model.verify = counting
    return calls


def test_proposals_are_kept(make_llm: Callable[..., Any], model_dir: Path) -> None:
    """The target as its own draft is always right, so an answer takes a quarter of the steps."""
    config = {"method": "draft_model", "model": str(model_dir), "num_speculative_tokens": 3}
    llm = make_llm(speculative_config=config)
    calls = counted(llm)
    llm.generate(prompts()[:1], params(temperature=0, ignore_eos=True), use_tqdm=False)
    assert len(calls) <= 4


def test_medusa_heads_are_kept(make_llm: Callable[..., Any], drafts: dict[str, Path]) -> None:
    """The first two of three heads, which are wrong at every third place."""
    config = {"method": "medusa", "model": str(drafts["medusa"]), "num_speculative_tokens": 2}
    llm = make_llm(speculative_config=config)
    calls = counted(llm)
    llm.generate(prompts()[:1], params(temperature=0, ignore_eos=True), use_tqdm=False)
    assert len(calls) <= 8
    assert {call["input_ids"].shape[1] for call in calls[:-1]} == {3}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict.clear, "has 0 heads, and num_medusa_heads=3"),
        (lambda heads: heads.pop("2.1.weight"), r"missing from.*candidate_heads\.2\.1\.weight"),
        (lambda heads: heads.update({"1.1.weight": torch.ones(9, 64)}), "wrong shapes"),
        (lambda heads: [heads.pop(f"2.{name}") for name in HEAD], r"has 2 heads.*ask for 2"),
    ],
)
def test_folders_that_are_not_three_heads(
    change: Callable[[dict[str, torch.Tensor]], object],
    reason: str,
    make_llm: Callable[..., Any],
    reference: Any,
    tmp_path: Path,
) -> None:
    heads = heads_of(reference)
    change(heads)
    save_medusa(tmp_path, heads)
    config = {"method": "medusa", "model": str(tmp_path), "num_speculative_tokens": 3}
    with pytest.raises(WeightError, match=reason):
        make_llm(speculative_config=config)


def test_a_folder_without_heads(make_llm: Callable[..., Any], tmp_path: Path) -> None:
    save_medusa(tmp_path, {})
    (tmp_path / "model.safetensors").unlink()
    config = {"method": "medusa", "model": str(tmp_path), "num_speculative_tokens": 3}
    with pytest.raises(WeightError, match="has no weights of Medusa heads"):
        make_llm(speculative_config=config)


def test_a_method_that_is_not_there_is_refused(make_llm: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedError, match="does not have the speculative method"):
        make_llm(speculative_config={"method": "ngram_gpu", "num_speculative_tokens": 3})


def test_trees_are_refused(make_llm: Callable[..., Any], drafts: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedError, match="medusa_tree proposes trees of tokens"):
        make_llm(
            speculative_config=speculative("medusa", drafts), neuron={"medusa_tree": [[0], [1]]}
        )

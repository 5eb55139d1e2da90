"""vLLM's `speculative_config` changes no token, whoever proposes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nxdi.errors import ConfigError, UnsupportedError
from tiny_eagle import PlainHead
from tiny_models import near, save_tiny
from vllm_plugin.conftest import save_tokenizer

METHODS: dict[str, dict[str, Any]] = {
    "ngram": {"method": "ngram", "prompt_lookup_max": 3, "prompt_lookup_min": 1},
    "draft_model": {"method": "draft_model"},
    "eagle": {"method": "eagle"},
    "eagle3": {"method": "eagle3"},
}
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
    return folders


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


def test_proposals_are_kept(make_llm: Callable[..., Any], model_dir: Path) -> None:
    """The target as its own draft is always right, so an answer takes a quarter of the steps."""
    config = {"method": "draft_model", "model": str(model_dir), "num_speculative_tokens": 3}
    llm = make_llm(speculative_config=config)
    runner = llm.llm_engine.model_executor.driver_worker.worker.runner
    calls, verify = [], runner.model.verify

    def counting(**inputs: Any) -> Any:
        calls.append(inputs)
        return verify(**inputs)

    runner.model.verify = counting
    llm.generate(prompts()[:1], params(temperature=0, ignore_eos=True), use_tqdm=False)
    assert len(calls) <= 4


@pytest.mark.parametrize(
    ("config", "error", "reason"),
    [
        (
            {"method": "ngram", "prompt_lookup_max": 3, "prompt_lookup_min": 2},
            ConfigError,
            "prompt_lookup_min=1",
        ),
        ({"method": "ngram_gpu"}, UnsupportedError, "does not have the speculative method"),
    ],
)
def test_what_is_not_there_is_refused(
    config: dict[str, Any], error: type[Exception], reason: str, make_llm: Callable[..., Any]
) -> None:
    with pytest.raises(error, match=reason):
        make_llm(speculative_config={**config, "num_speculative_tokens": 3})

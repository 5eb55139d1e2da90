"""A model that proposes in its graphs gives the tokens of plain decoding, in fewer steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nxdi.errors import ConfigError, UnsupportedError
from nxdi.generation import ContinuousBatcher, RequestOptions
from nxdi.generation.speculation import DraftModel, PromptLookup
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter as Adapter
from tiny_models import VOCAB_SIZE, load_app, load_fused
from tree_proposers import mixed_requests, run

SAMPLES: dict[str, Any] = {"on_device_sampling_config": {"dynamic": True}}
BLOCKS: dict[str, Any] = {"is_block_kv_layout": True, "pa_block_size": 4}
LENGTHS: dict[str, Any] = {"seq_len": 48, "max_context_length": 16, "batch_size": 3}


def prompts() -> tuple[Tensor, Tensor]:
    """Three rows, one of them shorter."""
    ids = torch.randint(1, VOCAB_SIZE, (3, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    ids[0, :4] = mask[0, :4] = 0
    return ids, mask


def answers(model: NeuronBaseForCausalLM) -> list[list[int]]:
    return run(ContinuousBatcher(model), mixed_requests(5))


MODELS: dict[str, dict[str, Any]] = {
    "pieces": {"chunked_prefill_config": {}, "max_context_length": 8},
    "prefixes, ahead": {**BLOCKS, "is_prefix_caching": True, "async_mode": True},
    # For one sequence and a half: requests lose their blocks and start over.
    "few blocks": {**BLOCKS, "pa_num_blocks": 18, "chunked_prefill_config": {}},
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("pieces", marks=pytest.mark.slow),
        "prefixes, ahead",
        pytest.param("few blocks", marks=pytest.mark.slow),
    ],
)
def test_requests_get_the_tokens_of_plain_decoding(kind: str, folders: Any) -> None:
    options = {**LENGTHS, **SAMPLES, **MODELS[kind]}
    expected = answers(load_app(folders.target, **options))
    assert answers(load_fused(folders.target, folders.near, **options)) == expected


def test_the_counts_are_those_of_the_draft_beside_its_target(folders: Any) -> None:
    options = {**LENGTHS, **SAMPLES}
    plain = load_app(folders.target, speculation_length=4, **options)
    draft = DraftModel(load_app(folders.near, **options))
    batchers = [
        ContinuousBatcher(plain, proposer=draft),
        ContinuousBatcher(load_fused(folders.target, folders.near, **options)),
    ]
    for batcher in batchers:
        for request in mixed_requests(4):
            batcher.add(*request)
    tokens = [[done.tokens for done in batcher.run().values()] for batcher in batchers]
    assert tokens[0] == tokens[1]
    counts = [batcher.speculation.counts for batcher in batchers if batcher.speculation]
    assert counts[0] == counts[1]
    assert 0 < counts[0].acceptance < 1


def test_a_twin_is_always_right(folders: Any) -> None:
    """Up to the end of each row's room, where fewer tokens are proposed."""
    model = load_fused(folders.target, folders.target, **LENGTHS, output_logits=True)
    batcher = ContinuousBatcher(model)
    greedy = [batcher.add([5, 6, 7], RequestOptions(ignore_eos=True, logprobs=2)) for _ in "ab"]
    done = batcher.run()
    assert len(done[greedy[0]].tokens) == 48 - 3 + 1
    assert done[greedy[0]].tokens == done[greedy[1]].tokens
    plain = ContinuousBatcher(load_app(folders.target, **LENGTHS))
    request = plain.add([5, 6, 7], RequestOptions(ignore_eos=True, logprobs=2))
    expected = plain.run()[request]
    assert done[greedy[0]].tokens == expected.tokens
    for ours, theirs in zip(done[greedy[0]].logprobs, expected.logprobs, strict=True):
        assert ours.token == pytest.approx(theirs.token, abs=1e-4)
    assert batcher.speculation is not None
    assert batcher.speculation.counts.acceptance == 1
    # Sampled requests are none of a greedy graph's, and go on beside the others one by one.
    mixed = [
        batcher.add([5, 6, 7], RequestOptions(ignore_eos=True, max_new_tokens=9, **sampling))
        for sampling in ({}, {"do_sample": True, "seed": 3})
    ]
    done = batcher.run()
    assert done[mixed[0]].tokens == expected.tokens[:9]
    sampled = plain.add(
        [5, 6, 7], RequestOptions(ignore_eos=True, max_new_tokens=9, do_sample=True, seed=3)
    )
    assert done[mixed[1]].tokens == plain.run()[sampled].tokens


@pytest.fixture(scope="module")
def fused(folders: Any) -> NeuronBaseForCausalLM:
    return load_fused(folders.target, folders.near, **LENGTHS, **SAMPLES, output_logits=True)


@pytest.fixture(scope="module")
def plain(folders: Any) -> NeuronBaseForCausalLM:
    return load_app(folders.target, **LENGTHS, **SAMPLES, output_logits=True)


@pytest.mark.parametrize(
    ("asked", "has_fused_steps"),
    [
        ({"do_sample": False}, True),
        ({"do_sample": False, "prompt_lookup_num_tokens": 4}, True),
        ({"do_sample": True, "top_k": 20, "seeds": [1, 2, 3]}, True),
        ({"do_sample": False, "eos_token_id": [*range(40)], "pad_token_id": 0}, True),
        # Chosen on the host, and so one by one.
        ({"do_sample": False, "repetition_penalty": 1.3}, False),
    ],
)
def test_generate_gives_the_same_tokens(
    asked: dict[str, Any],
    has_fused_steps: bool,
    fused: NeuronBaseForCausalLM,
    plain: NeuronBaseForCausalLM,
) -> None:
    ids, mask = prompts()
    names: list[str] = []
    fused.runner.observers.append(lambda spec, inputs: names.append(spec.name))
    try:
        found = Adapter(fused).generate(ids, attention_mask=mask, max_new_tokens=20, **asked)
    finally:
        fused.runner.observers.clear()
    asked = {name: value for name, value in asked.items() if name != "prompt_lookup_num_tokens"}
    expected = Adapter(plain).generate(ids, attention_mask=mask, max_new_tokens=20, **asked)
    assert torch.equal(found, expected)
    assert has_fused_steps == any(name.startswith("fused_speculation_model") for name in names)


def test_more_prompts_than_rows_take_turns(
    fused: NeuronBaseForCausalLM, plain: NeuronBaseForCausalLM
) -> None:
    ids = torch.cat([prompts()[0], prompts()[0] + 1])[:, 4:] % VOCAB_SIZE
    asked = {"max_new_tokens": 8, "do_sample": False}
    found, expected = (Adapter(model).generate(ids, **asked) for model in (fused, plain))
    assert torch.equal(found, expected)


def test_others_may_not_propose_to_it(fused: NeuronBaseForCausalLM, folders: Any) -> None:
    with pytest.raises(ConfigError, match="PromptLookup proposes tokens, and so do the graphs"):
        ContinuousBatcher(fused, proposer=PromptLookup())
    ids, mask = prompts()
    asked: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 4}
    draft = load_app(folders.near, **LENGTHS)
    with pytest.raises(ConfigError, match="DraftModel proposes tokens, and so do the graphs"):
        Adapter(fused).generate(ids, **asked, assistant_model=draft)
    with pytest.raises(ConfigError, match=r"prompt_lookup_num_tokens=3, but .*length=4 tokens"):
        Adapter(fused).generate(ids, **asked, prompt_lookup_num_tokens=3)


def test_what_the_graph_cannot_choose_is_refused_if_asked_for(
    fused: NeuronBaseForCausalLM,
) -> None:
    ids, mask = prompts()
    with pytest.raises(UnsupportedError, match="this request chooses tokens on the host"):
        Adapter(fused).generate(
            ids,
            attention_mask=mask,
            max_new_tokens=4,
            repetition_penalty=1.3,
            prompt_lookup_num_tokens=4,
        )

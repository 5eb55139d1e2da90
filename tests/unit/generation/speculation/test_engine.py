"""Requests of a batcher get the same tokens with speculation, in fewer steps."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from nxdi.errors import ConfigError
from nxdi.generation import ContinuousBatcher, RequestOptions
from nxdi.generation.speculation import DraftModel, PromptLookup
from tree_proposers import requests, run

SAMPLES = {"on_device_sampling_config": {"dynamic": True}}
BLOCKS = {"is_block_kv_layout": True, "pa_block_size": 4}
MODELS: dict[str, dict[str, Any]] = {
    "rows": {},
    "pieces": {"chunked_prefill_config": {}, "max_context_length": 8},
    "prefixes": {**BLOCKS, "is_prefix_caching": True},
    # For one sequence and a half: requests lose their blocks and start over.
    "few blocks, ahead": {
        **BLOCKS,
        **SAMPLES,
        "pa_num_blocks": 18,
        "async_mode": True,
        "chunked_prefill_config": {},
    },
}


@pytest.mark.parametrize("kind", MODELS)
def test_tokens_are_those_of_plain_decoding(kind: str, folders: Any) -> None:
    options, asked = MODELS[kind], requests(1, 7)
    model = folders.app(**options)
    expected = run(ContinuousBatcher(model), asked)
    own = {name: value for name, value in options.items() if name in SAMPLES}
    for proposer in (
        PromptLookup(),
        DraftModel(folders.app("near", **own)),
        DraftModel(folders.app("target", **own, speculation_length=0)),
    ):
        batcher = ContinuousBatcher(model, proposer=proposer)
        assert run(batcher, asked) == expected
        assert batcher.speculation is not None
        counts = batcher.speculation.counts
    assert counts.acceptance == 1  # of the twin, sampled requests too
    assert counts.tokens_per_step > 2


def test_a_stop_token_among_accepted_ones_is_the_last(
    target: Any, drafts: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompt = [5, 6, 7]
    free = ContinuousBatcher(target, tokenizer)
    first = free.add(prompt, RequestOptions(max_new_tokens=30, ignore_eos=True))
    plain = free.run()[first]
    for place in (4, 5, 6, 7):  # at every place of a step
        stop = plain.tokens[place]
        options: list[dict[str, Any]] = [
            {"stop_token_ids": [stop], "logprobs": 2},
            {"stop": str(tokenizer.decode([stop])), "logprobs": 0},
        ]
        for of_request in options:
            found = []
            for proposer in (None, DraftModel(drafts["target"])):
                batcher = ContinuousBatcher(target, tokenizer, proposer=proposer)
                request = batcher.add(prompt, RequestOptions(ignore_eos=True, **of_request))
                found.append(batcher.run()[request])
            assert found[1].tokens == found[0].tokens
            assert (found[1].text, found[1].finish_reason) == (found[0].text, "stop")
            for ours, theirs in zip(found[1].logprobs, found[0].logprobs, strict=True):
                assert ours.token == pytest.approx(theirs.token, abs=1e-4)


def test_a_model_without_verify_graphs_is_refused(folders: Any) -> None:
    model = folders.app(speculation_length=0)
    with pytest.raises(ConfigError, match="speculation_length=0, so it cannot verify"):
        ContinuousBatcher(model, proposer=PromptLookup())

"""Requests of a batcher get the same tokens with speculation, in fewer steps."""

from __future__ import annotations

import random
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from nxdi.errors import ConfigError
from nxdi.generation import ContinuousBatcher, RequestOptions
from nxdi.generation.speculation import DraftModel, PromptLookup
from tiny_models import VOCAB_SIZE

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


def requests(seed: int, number: int) -> list[tuple[list[int], RequestOptions]]:
    """Half of them sampled; some begin alike."""
    draw = random.Random(seed)
    start = [draw.randrange(1, VOCAB_SIZE) for _ in range(9)]
    made = []
    for index in range(number):
        prompt = start[: draw.randrange(10)] + [draw.randrange(1, VOCAB_SIZE) for _ in range(3)]
        sampling: dict[str, Any] = {"do_sample": True, "temperature": 0.7} if index % 2 else {}
        new = draw.choice([1, 2, 11, None])  # None: up to the end of the cache
        options = RequestOptions(max_new_tokens=new, ignore_eos=True, seed=index, **sampling)
        made.append((prompt, options))
    return made


def run(batcher: ContinuousBatcher, seed: int, number: int = 7) -> list[list[int]]:
    """The tokens of each request; some come while others run."""
    waiting, ids, found = requests(seed, number), [], {}
    while waiting or batcher.num_requests:
        if waiting:
            ids.append(batcher.add(*waiting.pop(0)))
        for output in batcher.step():
            found.setdefault(output.request_id, []).append(output.token)
    return [found[request] for request in ids]


@pytest.mark.parametrize("kind", MODELS)
def test_tokens_are_those_of_plain_decoding(kind: str, folders: Any) -> None:
    options = MODELS[kind]
    model = folders.app(**options)
    expected = run(ContinuousBatcher(model), 1)
    own = {name: value for name, value in options.items() if name in SAMPLES}
    for proposer in (
        PromptLookup(),
        DraftModel(folders.app("near", **own)),
        DraftModel(folders.app("target", **own, speculation_length=0)),
    ):
        batcher = ContinuousBatcher(model, proposer=proposer)
        assert run(batcher, 1) == expected
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

"""A request gets the tokens it would get alone, whoever its neighbours are and however it is run.

One needle among random requests that come at random times, over every cache, with prompts in pieces
and with too few blocks for all.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from golden.parity import Reference, load
from nxdi.generation import ContinuousBatcher, RequestOptions
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from tiny_models import VOCAB_SIZE

Get = Callable[[str], Reference]

ROWS = {"batch_size": 4, "ctx_batch_size": 2}
PAGED = {"is_block_kv_layout": True, "pa_block_size": 8, **ROWS}
PIECES = {"max_context_length": 16, "context_encoding_buckets": [16], "chunked_prefill_config": {}}
CACHES: dict[str, dict[str, Any]] = {
    "rows": ROWS,
    "rows in pieces": {**ROWS, "windowed_context_encoding_size": 16},
    "blocks": PAGED,
    "blocks, prefixes": {**PAGED, "is_prefix_caching": True},
    "blocks, prefix buckets": {**PAGED, "is_prefix_caching": True, "prefix_buckets": [16, 32]},
    "blocks, prefixes, steps ahead": {
        **PAGED,
        "is_prefix_caching": True,
        "async_mode": True,
        "on_device_sampling_config": {"dynamic": True},
    },
    # Enough for one sequence and a half: requests lose their blocks and start over.
    "few blocks, pieces": {**PAGED, **PIECES, "pa_num_blocks": 18},
    "few blocks, prefixes, tp 2": {
        **PAGED,
        **PIECES,
        "is_prefix_caching": True,
        "pa_num_blocks": 18,
    },
}
NUM_TRIALS = 200  # over all caches and both families


def some_request(rng: random.Random) -> tuple[list[int], RequestOptions]:
    length = rng.randrange(1, 60)
    prompt = [rng.randrange(1, VOCAB_SIZE) for _ in range(length)]
    sampling: dict[str, Any] = {"do_sample": True, "top_k": 30} if rng.random() < 0.3 else {}
    new = rng.randrange(1, 24)
    seed = rng.randrange(1000)
    return prompt, RequestOptions(max_new_tokens=new, ignore_eos=True, seed=seed, **sampling)


def run(
    model: NeuronBaseForCausalLM,
    requests: list[tuple[list[int], RequestOptions]],
    rng: random.Random,
) -> list[list[int]]:
    """The tokens of each request; they are added between steps, some at a time."""
    batcher = ContinuousBatcher(model)
    waiting, ids, found = list(requests), [], {}
    while waiting or batcher.num_requests:
        for _ in range(rng.randrange(1, 4)):
            if waiting:
                ids.append(batcher.add(*waiting.pop(0)))
        for output in batcher.step():
            found.setdefault(output.request_id, []).append(output.token)
    return [found[request] for request in ids]


def check_trials(model: NeuronBaseForCausalLM, seeds: range) -> None:
    for seed in seeds:
        rng = random.Random(seed)
        needle = some_request(rng)
        neighbours = [some_request(rng) for _ in range(rng.choice([1, 3, 8, 31]))]
        # Some begin as the needle does, so that its blocks are shared.
        for index in range(0, len(neighbours), 3):
            prompt, options = neighbours[index]
            neighbours[index] = ((needle[0] + prompt)[:60], options)
        place = rng.randrange(len(neighbours) + 1)
        alone = run(model, [needle], rng)[0]
        among = run(model, [*neighbours[:place], needle, *neighbours[place:]], rng)[place]
        assert among == alone, f"trial {seed}"


@pytest.mark.parametrize("caches", CACHES)
@pytest.mark.parametrize(
    "name", ["llama", "mistral", pytest.param("deepseek", marks=pytest.mark.slow)]
)
def test_a_needle_among_neighbours(name: str, caches: str, reference_of: Get) -> None:
    check_trials(load(reference_of(name), 2 if "tp 2" in caches else 1, **CACHES[caches]), range(2))


@pytest.mark.slow
@pytest.mark.parametrize("caches", CACHES)
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_many_needles(name: str, caches: str, reference_of: Get) -> None:
    each = -(-NUM_TRIALS // (2 * len(CACHES)))
    model = load(reference_of(name), 2 if "tp 2" in caches else 1, **CACHES[caches])
    check_trials(model, range(2, 2 + each))


@pytest.mark.parametrize("caches", ["rows", "blocks"])
def test_logits_do_not_depend_on_the_other_rows(caches: str, reference_of: Get) -> None:
    """Within one graph, bit for bit."""
    reference = reference_of("llama")
    model = load(reference, 1, **CACHES[caches])
    token = torch.tensor([[5]])
    found = []
    for others in ([], [33], [33, 15, 31]):
        model.reset()
        for row, length in enumerate([17, *others]):
            place = {"seq_ids": torch.tensor([row])}
            if caches == "blocks":
                place = {"block_table": torch.arange(12 * row, 12 * row + 12)[None]}
            model(reference.prompts[length][None], **place)
        lengths = torch.tensor([[17], *([n] for n in others)])
        tokens = token.expand(len(lengths), 1)
        place = {"seq_ids": torch.arange(len(lengths))}
        if caches == "blocks":
            place = {"block_table": torch.arange(12 * len(lengths)).view(-1, 12)}
        output = model(tokens, position_ids=lengths, **place)
        assert output.logits is not None
        found.append(output.logits[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])

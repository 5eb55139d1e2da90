"""Greedy speculation gives transformers' tokens: any batch, tp degree, length, cache and family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from golden.parity import NEW_TOKENS, Reference, load
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.utils.hf_adapter import HuggingFaceGenerationAdapter
from tiny_medusa import TREES, fitted_heads, heads_options, save_heads
from tiny_models import VOCAB_SIZE, load_app, near, save_tiny, tiny_hf_model
from tree_proposers import KINDS, Knowing

Get = Callable[[str], Reference]

BATCHES = {1: [17], 2: [31, 1], 8: [1, 15, 16, 17, 31, 32, 33, 63]}
QUICK = [(1, 1, 2), (2, 2, 4), (8, 1, 6), (8, 2, 3), (1, 2, 8)]
ALL = [(batch, tp, length) for batch in BATCHES for tp in (1, 2) for length in range(1, 9)]


def check(
    reference: Reference,
    target: NeuronBaseForCausalLM,
    draft: NeuronBaseForCausalLM | None,
    lengths: list[int],
) -> None:
    ids, mask = reference.batch(lengths, "left")
    num_proposed = target.neuron_config.speculation_length - 1
    proposing: dict[str, Any] = {"assistant_model": draft}
    if draft is None and num_proposed:
        proposing = {"prompt_lookup_num_tokens": num_proposed}
    out = HuggingFaceGenerationAdapter(target).generate(
        ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, **proposing
    )
    for row, length in enumerate(lengths):
        assert torch.equal(out[row, -NEW_TOKENS:], reference.tokens[length])


def walk(reference: Reference, family: str, cases: list[tuple[int, int, int]], **own: Any) -> None:
    """Prompt lookup, a draft near the target, and the target's twin."""
    model = near(tiny_hf_model(family))
    near_folder = save_tiny(model, reference.folder / "near")
    for batch_size, tp_degree, length in cases:
        options = {"speculation_length": length, "batch_size": batch_size, **own}
        target = load(reference, tp_degree, **options)
        # Neither its lengths, nor its buckets, nor its tp degree are the target's.
        sizes = {"seq_len": 96, "max_context_length": 48, **options}
        drafts = (None, load_app(near_folder, **sizes), load_app(reference.folder, **sizes))
        for draft in drafts:
            check(reference, target, draft, BATCHES[batch_size])


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_tokens_are_those_of_transformers(family: str, reference_of: Get) -> None:
    walk(reference_of(family), family, QUICK[:2] if family == "llama" else QUICK[3:4])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mistral", "llama4", "mixtral", "gpt_oss"])
def test_every_batch_degree_and_length(family: str, reference_of: Get) -> None:
    cases = ALL if family == "llama" else QUICK
    walk(reference_of(family), family, cases)


@pytest.mark.slow
@pytest.mark.parametrize(
    "own",
    [
        {"is_block_kv_layout": True, "pa_block_size": 8},
        {"is_block_kv_layout": True, "pa_block_size": 8, "is_prefix_caching": True},
        {"quantized": True, "quantization_type": "per_channel_symmetric"},
        {"token_generation_buckets": [4, 20, 96]},  # one as long as a step
    ],
)
def test_other_caches_and_weights(own: dict[str, Any], reference_of: Get) -> None:
    if "quantized" not in own:
        walk(reference_of("llama"), "llama", QUICK[1:3], **own)
        return
    # Against its own decoding: rounded weights have other tokens than transformers'.
    reference = reference_of("llama")
    target = load(reference, 2, speculation_length=4, batch_size=2, **own)
    adapter = HuggingFaceGenerationAdapter(target)
    ids, mask = reference.batch([31, 1], "left")
    options = {"attention_mask": mask, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    plain = adapter.generate(ids, **options)
    draft = load_app(reference.folder, seq_len=96, batch_size=2, **own)
    assert torch.equal(adapter.generate(ids, **options, assistant_model=draft), plain)


LAYOUTS: dict[str, dict[str, Any]] = {
    "rows": {},
    "blocks": {"is_block_kv_layout": True, "pa_block_size": 8, "is_prefix_caching": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("tp_degree", [1, 2])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_medusa_heads_and_their_trees(
    family: str, tp_degree: int, batch_size: int, layout: str, reference_of: Get
) -> None:
    reference, lengths = reference_of(family), BATCHES[batch_size]
    hf = tiny_hf_model(family)
    folder = save_tiny(hf, reference.folder / "heads")
    ids, mask = reference.batch(lengths, "left")
    rows = zip(ids, mask.bool(), lengths, strict=True)
    whole = [
        [*row[is_real].tolist(), *reference.tokens[length].tolist()]
        for row, is_real, length in rows
    ]
    save_heads(folder, fitted_heads(hf, whole))
    for tree in TREES:
        options = {**heads_options(tree), **LAYOUTS[layout], "batch_size": batch_size}
        model = load_app(folder, seq_len=96, tp_degree=tp_degree, **options)
        who = [Knowing(whole, kind, VOCAB_SIZE) for kind in KINDS if tree != "chain"]
        for proposing in ({}, *({"proposer": proposer} for proposer in who)):
            out = HuggingFaceGenerationAdapter(model).generate(
                ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, **proposing
            )
            for row, length in enumerate(lengths):
                assert torch.equal(out[row, -NEW_TOKENS:], reference.tokens[length])

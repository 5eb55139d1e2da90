"""A head in the graphs of its target proposes what one beside it does, and tokens stay the same."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from nxdi.generation import ContinuousBatcher, RequestOptions
from nxdi.generation.speculation import EagleHead
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from nxdi.modules.speculation import fused_head
from tiny_eagle import KINDS, PlainHead, load_fused_head, load_head, save_agreeing
from tiny_models import load_app
from tree_proposers import mixed_requests, run

SAMPLES: dict[str, Any] = {"on_device_sampling_config": {"dynamic": True}}
BLOCKS: dict[str, Any] = {"is_block_kv_layout": True, "pa_block_size": 4}
LENGTHS: dict[str, Any] = {"seq_len": 48, "max_context_length": 16, "batch_size": 3}
HEADS = {**KINDS, "input norm": {"enable_eagle_draft_input_norm": True}}
Made = tuple[PlainHead, Path, Path, dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return {
        kind: (*save_agreeing(tmp_path_factory.mktemp("head"), **options), options)
        for kind, options in HEADS.items()
    }


def load(made: Made, **options: Any) -> NeuronBaseForCausalLM:
    _, folder, head_folder, kind = made
    return load_fused_head(folder, head_folder, **{**LENGTHS, **options}, **kind)


def load_beside(made: Made, **options: Any) -> tuple[NeuronBaseForCausalLM, EagleHead]:
    _, folder, head_folder, kind = made
    is_eagle3 = kind.get("is_eagle3", False)
    given = {**LENGTHS, "speculation_length": 4}
    asked = {"enable_eagle_speculation": True, "is_eagle3": is_eagle3}
    target = load_app(folder, **{**given, **options}, **asked)
    given["max_context_length"] = 48  # so that it knows all of a sequence that starts over
    return target, EagleHead(load_head(head_folder, folder, **given, **kind))


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind == "eagle" else pytest.mark.slow) for kind in HEADS],
)
def test_it_proposes_what_a_plain_head_computes(
    kind: str, made: dict[str, Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To each sequence, after what it has so far."""
    seen: list[tuple[list[int], int, int]] = []

    def watch(tokens: Tensor, chosen: Tensor, position_ids: Tensor) -> Any:
        for row, positions in zip(tokens.tolist(), position_ids.tolist(), strict=True):
            num_proposed = sum(place >= 0 for place in positions) - 1
            if num_proposed > 0:
                seen.append((row, positions[0], num_proposed))
        return accept(tokens, chosen, position_ids)

    accept = fused_head.accept
    monkeypatch.setattr(fused_head, "accept", watch)
    prompts = [[5, 6, 7], [8], [9] * 12, [4, 3, 2, 1]]
    asked = [(prompt, RequestOptions(max_new_tokens=20, ignore_eos=True)) for prompt in prompts]
    found = run(ContinuousBatcher(load(made[kind])), asked)
    whole = [[*prompt, *tokens] for prompt, tokens in zip(prompts, found, strict=True)]
    for row, start, num_proposed in seen:
        proposals = [
            made[kind][0].propose(tokens[: start + 1], num_proposed)
            for tokens in whole
            if tokens[start : start + 1] == row[:1]
        ]
        assert row[1 : 1 + num_proposed] in proposals
    assert len(seen) > 20


CACHES: dict[str, dict[str, Any]] = {
    "rows": {},
    "two ranks": {"tp_degree": 2},
    "blocks, ahead": {**BLOCKS, "async_mode": True},
    "pieces": {"chunked_prefill_config": {}, "max_context_length": 8},
    # For one sequence and a half: requests lose their blocks and start over.
    "few blocks": {**BLOCKS, "pa_num_blocks": 18, "chunked_prefill_config": {}},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_sequences_that_share_blocks_get_their_own_tokens(kind: str, made: dict[str, Made]) -> None:
    """The head beside its target knows nothing of a prefix that is found."""
    options = {**SAMPLES, **BLOCKS, "is_prefix_caching": True}
    asked = mixed_requests(5) * 2
    plain = run(ContinuousBatcher(load_app(made[kind][1], **{**LENGTHS, **options})), asked)
    assert run(ContinuousBatcher(load(made[kind], **options)), asked) == plain


USUAL = {("eagle3", "blocks, ahead")}
CASES = [
    pytest.param(*case, marks=[] if case in USUAL else pytest.mark.slow)
    for case in product(HEADS, CACHES)
]


@pytest.mark.parametrize(("kind", "cache"), CASES)
def test_the_counts_are_those_of_the_head_beside_its_target(
    kind: str, cache: str, made: dict[str, Made]
) -> None:
    """Of greedy and sampled requests, and both give the tokens of plain decoding."""
    options = {**SAMPLES, **CACHES[cache]}
    target, head = load_beside(made[kind], **options)
    asked = mixed_requests(5)
    plain = run(ContinuousBatcher(target), asked)
    target.reset()
    batchers = [
        ContinuousBatcher(target, proposer=head),
        ContinuousBatcher(load(made[kind], **options)),
    ]
    for batcher in batchers:
        assert run(batcher, asked) == plain
    counts = [batcher.speculation.counts for batcher in batchers if batcher.speculation]
    assert counts[0] == counts[1]
    assert 0.1 < counts[0].acceptance < 0.9

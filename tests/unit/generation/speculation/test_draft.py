from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from nxdi.generation.speculation import DraftModel
from nxdi.generation.speculation.proposals import Wanted
from nxdi.generation.speculation.rules import SeededRule
from nxdi.models.causal_lm import NeuronBaseForCausalLM
from tiny_models import load_app, save_tiny, tiny_hf_model


@dataclass
class Sequence:
    id: int
    tokens: list[int]
    seed: int = 0
    sampling_params: tuple[float, float, float] = (1, 1.0, 1.0)


def greedy(draft: NeuronBaseForCausalLM, tokens: list[int], num_new: int) -> list[int]:
    """What the draft generates, from nothing."""
    tokens = list(tokens)
    for _ in range(num_new):
        logits = draft(torch.tensor([tokens])).logits
        assert logits is not None
        tokens.append(int(logits.argmax()))
    return tokens[-num_new:]


def propose(proposer: DraftModel, *rows: tuple[Sequence, int]) -> list[list[int]]:
    rule = SeededRule(proposer.draft.neuron_config, proposer.draft.neuron_config)
    proposals = proposer.propose([Wanted(*row) for row in rows], rule)
    return [proposal.tokens for proposal in proposals]


@pytest.fixture(scope="module")
def judge(folders: Any) -> NeuronBaseForCausalLM:
    """The draft model once more, with a cache that no proposer relies on."""
    model: NeuronBaseForCausalLM = folders.app("near", speculation_length=0)
    return model


def test_proposals_are_what_the_draft_would_generate(drafts: Any, judge: Any) -> None:
    """However the sequences change between two proposals."""
    proposer = DraftModel(drafts["near"])
    a, b = Sequence(10, [5, 6, 7]), Sequence(11, [8])
    for change in (
        lambda: None,
        lambda: a.tokens.extend(greedy(judge, a.tokens, 3)),  # all were kept ...
        lambda: a.tokens.append(1),  # ... none, and another one came
        lambda: b.tokens.extend([4, 5, 6, 7, 8]),  # another went far ahead
        lambda: b.tokens.__delitem__(slice(2, None)),  # was taken back
        lambda: b.tokens.__setitem__(0, 9),  # is another
    ):
        change()
        found = propose(proposer, (a, 3), (b, 2))
        assert found == [greedy(judge, a.tokens, 3), greedy(judge, b.tokens, 2)]


def test_computed_tokens_are_not_computed_again(drafts: Any) -> None:
    draft = drafts["near"]
    proposer = DraftModel(draft)
    a = Sequence(1, [5, 6, 7])
    steps: list[tuple[str, int]] = []
    draft.runner.observers.append(
        lambda spec, inputs: steps.append((spec.phase.value, int(inputs["position_ids"].max())))
    )
    try:
        (tokens,) = propose(proposer, (a, 3))
        assert steps == [("prefill", 2), ("decode", 3), ("decode", 4)]
        steps.clear()
        a.tokens += [*tokens, 1]
        propose(proposer, (a, 2))
        assert steps == [("decode", 5), ("decode", 6), ("decode", 7)]
    finally:
        draft.runner.observers.clear()


def test_rows_of_the_cache_are_used_again(drafts: Any, judge: Any) -> None:
    proposer = DraftModel(drafts["near"])  # of 3 rows
    for first in range(0, 8, 2):
        rows = [Sequence(first + i, [1 + first, 2 + i]) for i in range(3)]
        found = propose(proposer, *((row, 2) for row in rows))
        assert found == [greedy(judge, row.tokens, 2) for row in rows]


def test_a_draft_proposes_as_far_as_its_cache_reaches(tmp_path: Path) -> None:
    folder = save_tiny(tiny_hf_model("llama"), tmp_path)
    draft = load_app(folder, seq_len=12, max_context_length=6)
    proposer = DraftModel(draft)
    tokens = list(range(1, 11))  # longer than a prompt may be
    (found,) = propose(proposer, (Sequence(0, tokens), 9))
    assert len(found) == 3  # the token at place 12 is the last one that is not computed
    (found,) = propose(proposer, (Sequence(0, [*tokens, *found]), 9))
    assert found == []
    assert propose(proposer, (Sequence(1, tokens), 0)) == [[]]

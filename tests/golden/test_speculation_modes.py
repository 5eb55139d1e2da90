"""Every way to speculate gives the tokens of plain decoding, while requests come and go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from nxdi.generation import ContinuousBatcher
from nxdi.generation.speculation.step import Counts
from speculation_modes import MODES, Asked, Folders, Made, options_of, save_folders, some_requests
from tiny_models import load_app
from tree_proposers import run

LENGTHS: dict[str, Any] = {"seq_len": 48, "max_context_length": 16}
# Each batch size with each tp degree, and short and long steps with both.
QUICK = {
    "draft": (2, 1, "3"),
    "fused": (8, 1, "8"),
    "lookup": (1, 1, "5"),
    "eagle": (8, 1, "2"),
    "eagle3": (2, 1, "6"),
    "eagle trees": (8, 1, "twigs"),
    "eagle3 growing trees": (8, 2, "deep"),
    "medusa": (1, 1, "7"),
    "medusa trees": (2, 2, "wide"),
}

Answered = tuple[list[Asked], list[list[int]]]


def answered(folders: Folders, asked: list[Asked], **options: Any) -> Answered:
    """Requests, and the tokens that a model without speculation gives them."""
    app = load_app(folders.target, **{**LENGTHS, **options})
    return asked, run(ContinuousBatcher(app), asked)


@pytest.fixture(scope="module")
def few(mode_folders: Folders) -> Answered:
    return answered(mode_folders, some_requests(1, 12), batch_size=8)


@pytest.fixture(scope="module")
def many(mode_folders: Folders) -> Answered:
    """For each mode, batch size and tp degree 210."""
    return answered(mode_folders, some_requests(2, 210), batch_size=8)


def some(*quick: str) -> list[Any]:
    """These modes always, and the others among the slow tests."""
    return [pytest.param(mode, marks=() if mode in quick else pytest.mark.slow) for mode in MODES]


def speculate(made: Made, asked: Sequence[Asked]) -> tuple[list[list[int]], Counts]:
    batcher = ContinuousBatcher(made.target, proposer=made.proposer)
    found = run(batcher, asked)
    assert batcher.speculation is not None
    return found, batcher.speculation.counts


@pytest.mark.parametrize("mode", MODES)
def test_few_prompts(mode: str, mode_folders: Folders, few: Answered) -> None:
    asked, expected = few
    batch_size, tp_degree, variant = QUICK[mode]
    options = options_of(mode, **LENGTHS, batch_size=batch_size, tp_degree=tp_degree)
    found, counts = speculate(MODES[mode].load(mode_folders, variant, **options), asked)
    assert found == expected
    assert 0 < counts.kept[0] < counts.proposed[0]


@pytest.mark.slow
@pytest.mark.parametrize("tp_degree", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("mode", MODES)
def test_many_prompts(
    mode: str, batch_size: int, tp_degree: int, mode_folders: Folders, many: Answered
) -> None:
    """Each length of a step, or shape of a tree, has prompts of its own."""
    options = options_of(mode, **LENGTHS, batch_size=batch_size, tp_degree=tp_degree)
    variants = MODES[mode].variants
    for place, variant in enumerate(variants):
        asked, expected = (rows[place :: len(variants)] for rows in many)
        found, counts = speculate(MODES[mode].load(mode_folders, variant, **options), asked)
        assert found == expected, variant
        assert 0 < counts.kept[0] < counts.proposed[0]


@pytest.fixture(scope="module")
def turning(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """LongRoPE turns all tokens otherwise from position 24 on; those of drafts too."""
    scaling = {
        "rope_type": "longrope",
        "original_max_position_embeddings": 24,
        "short_factor": [1.0, 1.3] * 2,
        "long_factor": [2.5, 6.0] * 2,
    }
    return save_folders(tmp_path_factory.mktemp("turning"), rope_scaling=scaling)


@pytest.mark.parametrize("mode", some("draft", "eagle trees"))
def test_near_the_switch_of_longrope(mode: str, turning: Folders) -> None:
    options = {**LENGTHS, "max_context_length": 48, "batch_size": 4}
    asked, expected = answered(turning, some_requests(3, 12, longest=30), **options)
    rows = zip(asked, expected, strict=True)
    assert sum(len(prompt) < 24 < len(prompt) + len(new) for (prompt, _), new in rows) > 3
    variant = list(MODES[mode].variants)[-1]
    made = MODES[mode].load(turning, variant, **options_of(mode, **options))
    assert made.target.prefill_again_at == 24
    assert speculate(made, asked)[0] == expected

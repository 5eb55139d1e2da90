"""Where the features of last tokens are kept."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from nxdi.config import NeuronConfig
from nxdi.modules.speculation.last_features import (
    BlockFeatures,
    LastFeatures,
    RowFeatures,
    make_last_features,
)

ROWS = RowFeatures(3, 1, torch.float32)
BLOCKS = BlockFeatures(9, 1, torch.float32, block_size=2)
INPUTS = {
    "seq_ids": torch.tensor([2, 0], dtype=torch.int32),
    "block_table": torch.tensor([[4, 1, 7], [3, -1, -1]], dtype=torch.int32),
}
# Three tokens from position 1 on; and one, behind which there is padding.
POSITIONS = torch.tensor([[1, 2, 3], [0, -1, -1]], dtype=torch.int32)
FEATURES = torch.tensor([[[11.0], [12.0], [13.0]], [[20.0], [98.0], [99.0]]])


@pytest.mark.parametrize(
    ("kept", "expected"),
    [(ROWS, {2: 13.0, 0: 20.0}), (BLOCKS, {4: 11.0, 1: 13.0, 3: 20.0})],
)
def test_the_last_token_of_each_place_is_kept(
    kept: LastFeatures, expected: dict[int, float]
) -> None:
    state = torch.zeros(kept.shape)
    new = kept.keep(state, FEATURES, POSITIONS, INPUTS)
    assert not state.any()
    found = new[: kept.num_places, 0]
    assert {place: float(found[place]) for place in found.nonzero().flatten().tolist()} == expected


@pytest.mark.parametrize("kept", [ROWS, BLOCKS])
def test_no_place_is_written_twice(kept: LastFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of two values stayed would be left to chance; only that for padding is."""
    written: list[int] = []

    def index_put(state: Tensor, where: Any, values: Tensor) -> Tensor:
        written.extend(where[0].flatten().tolist())
        return state

    monkeypatch.setattr(torch, "index_put", index_put)
    kept.keep(torch.zeros(kept.shape), FEATURES, POSITIONS, INPUTS)
    counts = Counter(place for place in written if place != kept.num_places)
    assert counts
    assert set(counts.values()) == {1}


@pytest.mark.parametrize(("kept", "place"), [(ROWS, 2), (BLOCKS, 4)])
def test_a_row_goes_on_from_the_token_before_its_first(kept: LastFeatures, place: int) -> None:
    state = torch.arange(kept.shape[0]).unsqueeze(1).half()
    before = kept.before(state, {**INPUTS, "position_ids": POSITIONS})
    assert before.dtype == torch.float32
    # The second row begins: nothing reads what it is given.
    assert before.flatten().tolist() == [place, kept.num_places]


def test_there_are_as_many_places_as_the_cache_has() -> None:
    options: dict[str, Any] = {"seq_len": 32, "batch_size": 3, "backend": "eager"}
    half = NeuronConfig(**{**options, "backend": "neuron"}, torch_dtype="bfloat16")
    assert make_last_features(half, 8) == RowFeatures(3, 8, torch.bfloat16)
    paged = NeuronConfig(**options, is_block_kv_layout=True, pa_block_size=4, pa_num_blocks=9)
    assert make_last_features(paged, 8) == BlockFeatures(9, 8, torch.float32, 4)

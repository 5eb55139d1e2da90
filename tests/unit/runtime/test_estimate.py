from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nxdi.errors import WeightError
from nxdi.parallel_layers.layers import ColumnParallelLinear, ParallelEmbedding
from nxdi.parallel_layers.parallel_state import tensor_parallel
from nxdi.runtime.checkpoint import write_safetensors
from nxdi.runtime.estimate import checkpoint_dtype, checkpoint_on_meta, memory_of, rank_bytes
from nxdi.runtime.weights import model_tensors, without_memory


def test_a_checkpoint_has_whole_tensors_and_no_ranks() -> None:
    with without_memory(), tensor_parallel(2):
        wanted = model_tensors(ParallelEmbedding(10, 4))  # sharded by rows, with a rank
    full = checkpoint_on_meta(wanted, torch.bfloat16)
    assert {name: (tuple(t.shape), t.dtype) for name, t in full.items()} == {
        "weight": ((10, 4), torch.bfloat16)
    }
    assert full["weight"].is_meta
    assert checkpoint_on_meta(wanted, None)["weight"].dtype == torch.float32


def test_padding_counts_and_a_cast_does_not_change_it() -> None:
    with without_memory(), tensor_parallel(4):
        wanted = model_tensors(ColumnParallelLinear(8, 10, pad=True))  # 3 rows on each rank
    for dtype in (torch.float32, torch.bfloat16):
        full = checkpoint_on_meta(wanted, dtype)
        assert rank_bytes(wanted, full, 3, shares=True) == 4 * (3 * 8 + 3)


def test_memory_is_the_same_stretch() -> None:
    whole = torch.empty(4, 4, device="meta")
    assert memory_of(whole) == memory_of(whole.view(4, 4))
    assert memory_of(whole[:2]) != memory_of(whole[2:])
    assert memory_of(whole) != memory_of(torch.empty(4, 4, device="meta"))


def test_the_dtype_of_most_tensors(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(2, dtype=torch.bfloat16) for name in "abc"}
    write_safetensors(tmp_path / "model.safetensors", {**tensors, "d": torch.zeros(2)})
    assert checkpoint_dtype(tmp_path) is torch.bfloat16


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"dtype": "float16"}, torch.float16),
        ({"torch_dtype": "bfloat16"}, torch.bfloat16),
        ({}, None),
    ],
)
def test_the_dtype_that_a_config_names(
    config: dict[str, str], dtype: torch.dtype | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert checkpoint_dtype(tmp_path) is dtype


def test_a_damaged_header_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(WeightError, match=r"model\.safetensors"):
        checkpoint_dtype(tmp_path)

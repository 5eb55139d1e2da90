"""Medusa heads as others publish them, read as ours; what is none is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nxdi.errors import WeightError
from nxdi.runtime.checkpoint import write_safetensors
from nxdi.runtime.heads import find_heads, read_heads
from tiny_medusa import vllm_names


def heads(num_heads: int = 3, has_bias: bool = True) -> dict[str, Tensor]:
    state = {}
    for head in range(num_heads):
        state[f"{head}.0.linear.weight"] = torch.randn(4, 4)
        state[f"{head}.1.weight"] = torch.randn(9, 4)
        if has_bias:
            state[f"{head}.0.linear.bias"] = torch.randn(4)
    return state


def written(folder: Path, state: dict[str, Tensor]) -> Path:
    write_safetensors(folder / "model.safetensors", state)
    return folder / "model.safetensors"


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.equal(found[name], wanted[name]) for name in wanted
    )


@pytest.mark.parametrize("prefix", ["", "medusa_heads.", "medusa_head_"])
def test_published_names(prefix: str, tmp_path: Path) -> None:
    state = heads()
    file = written(tmp_path, {prefix + name: tensor for name, tensor in state.items()})
    assert same(read_heads(file, 3, 1), state)


@pytest.mark.parametrize("prefix", ["", "medusa_heads."])
def test_names_of_vllm(prefix: str, tmp_path: Path) -> None:
    state = heads()
    renamed = {prefix + name: tensor for name, tensor in vllm_names(state).items()}
    assert same(read_heads(written(tmp_path, renamed), 3, 1), state)


def test_the_first_heads_of_more(tmp_path: Path) -> None:
    state = heads()
    file = written(tmp_path, state)
    assert same(read_heads(file, 1, 1), {k: v for k, v in state.items() if k.startswith("0.")})
    with pytest.raises(WeightError, match=r"has 3 heads, and num_medusa_heads=4.*ask for 3"):
        read_heads(file, 4, 1)


def test_a_file_without_biases(tmp_path: Path) -> None:
    state = heads(has_bias=False)
    zeros = {f"{head}.0.linear.bias": torch.zeros(4) for head in range(3)}
    assert same(read_heads(written(tmp_path, vllm_names(state)), 3, 1), {**state, **zeros})


@pytest.mark.parametrize("without", ["0.0.linear.bias", "2.1.weight"])
def test_a_tensor_that_is_missing_is_not_made_up(without: str, tmp_path: Path) -> None:
    state = heads()
    del state[without]
    assert same(read_heads(written(tmp_path, state), 3, 1), state)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ("lm_heads.weight", "tensors that no Medusa head has: lm_heads.weight"),
        ("token_map", "know a part of the vocabulary only"),
    ],
)
def test_other_tensors_are_refused(extra: str, reason: str, tmp_path: Path) -> None:
    file = written(tmp_path, {**heads(), extra: torch.ones(2)})
    with pytest.raises(WeightError, match=reason):
        read_heads(file, 3, 1)


def test_where_the_file_is(tmp_path: Path) -> None:
    """model.safetensors beside a model is the model's own."""
    model, own = tmp_path / "model", tmp_path / "heads"
    for folder in (model, own):
        folder.mkdir()
        written(folder, heads())
    assert find_heads(model, str(own)) == own / "model.safetensors"
    with pytest.raises(WeightError, match=r"none of medusa_heads\.safetensors"):
        find_heads(model)
    (model / "medusa_lm_head.pt").touch()
    assert find_heads(model) == model / "medusa_lm_head.pt"


def test_what_is_pickled_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "medusa_lm_head.pt"
    torch.save({"0.1.weight": print}, file)
    with pytest.raises(WeightError, match="could run code"):
        read_heads(file, 1, 1)

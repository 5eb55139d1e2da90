from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nxdi.errors import WeightError
from nxdi.modules.attention.projections import rename_projections
from tiny_modules import drawn

SIZES = (8, 4, 4)
P = "layers.0.self_attn."
NAMES = ("q_proj", "k_proj", "v_proj")


def plain(kind: str = "weight") -> dict[str, Tensor]:
    shapes = dict(zip(NAMES, SIZES, strict=True))
    tail = (6,) if kind == "weight" else ()
    return {name: drawn(size, *tail, seed=size) for name, size in shapes.items()}


def renamed(state: dict[str, Tensor], o_proj_name: str = "o_proj") -> dict[str, Tensor]:
    rename_projections(state, P, SIZES, o_proj_name)
    return state


def check(state: dict[str, Tensor], kind: str) -> None:
    expected = {f"{P}qkv_proj.{name}.{kind}": t for name, t in plain(kind).items()}
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor)


@pytest.mark.parametrize("kind", ["weight", "bias"])
@pytest.mark.parametrize("before", ["", "qkv_proj."])
def test_three_tensors(before: str, kind: str) -> None:
    given = {f"{P}{before}{name}.{kind}": t for name, t in plain(kind).items()}
    check(renamed(given), kind)


@pytest.mark.parametrize("kind", ["weight", "bias"])
@pytest.mark.parametrize("name", ["Wqkv", "qkv_proj.Wqkv"])
def test_one_fused_tensor(name: str, kind: str) -> None:
    check(renamed({f"{P}{name}.{kind}": torch.cat(list(plain(kind).values()))}), kind)


@pytest.mark.parametrize("kind", ["weight", "bias"])
@pytest.mark.parametrize("name", ["o_proj", "o_proj.o_proj"])
def test_output(name: str, kind: str) -> None:
    tensor = drawn(3)
    assert renamed({f"{P}{name}.{kind}": tensor}) == {f"{P}o_proj.{kind}": tensor}


def test_output_by_a_name_of_the_models_own() -> None:
    tensor = drawn(3)
    assert renamed({f"{P}dense.weight": tensor}, "dense") == {f"{P}o_proj.weight": tensor}


def test_a_fused_tensor_of_another_size() -> None:
    message = r"self_attn.Wqkv.weight has 15 rows, but q, k and v need 8 \+ 4 \+ 4; store them one"
    with pytest.raises(WeightError, match=message):
        renamed({f"{P}Wqkv.weight": drawn(15, 6)})


def test_other_layers_and_names_are_left_alone() -> None:
    given = {"layers.10.self_attn.q_proj.weight": drawn(1), f"{P}sinks": drawn(2)}
    assert renamed(dict(given)).keys() == given.keys()

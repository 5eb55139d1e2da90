from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nxdi.errors import WeightError
from nxdi.modules.moe.checkpoint import fuse_experts, rename_from_nxdi
from tiny_modules import drawn

E, H, SIZE = 3, 4, 5
PATH = "layers.0.mlp.experts"


def fused() -> dict[str, Tensor]:
    return {f"{PATH}.gate_up_proj": drawn(E, 2 * SIZE, H), f"{PATH}.down_proj": drawn(E, H, SIZE)}


def single(names: tuple[str, str, str]) -> dict[str, Tensor]:
    """The same weights, one linear per expert, in no order."""
    gate_up, down = fused().values()
    state = {}
    for expert in (2, 0, 1):
        gate, up = gate_up[expert].chunk(2)
        for name, weight in zip(names, (gate, up, down[expert]), strict=True):
            state[f"{PATH}.{expert}.{name}.weight"] = weight
    return state


@pytest.mark.parametrize("names", [("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")])
def test_both_layouts_of_transformers_give_one(names: tuple[str, str, str]) -> None:
    other = {"layers.0.mlp.router.weight": drawn(E, H)}
    got, expected = fuse_experts({**single(names), **other}, names), fuse_experts(fused())
    assert got.keys() == {*expected, *other}
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    gate_up, down = fused().values()
    assert torch.equal(expected[f"{PATH}.gate_up_proj"], gate_up.transpose(1, 2))
    assert torch.equal(expected[f"{PATH}.down_proj"], down.transpose(1, 2))


def test_a_fused_weight_is_not_copied() -> None:
    state = fused()
    got = fuse_experts(state)
    for name, tensor in state.items():
        assert got[name].data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{PATH}.1.up_proj.weight": None}, r"up_proj.weight: there are 2 tensors .* 0 to 2"),
        ({f"{PATH}.1.up_proj.weight": drawn(SIZE + 1, H)}, r"of shapes \[\(5, 4\), \(6, 4\)\]"),
        ({f"{PATH}.9.up_proj.weight": drawn(SIZE, H)}, "4 tensors for experts 0 to 9"),
        (dict.fromkeys((f"{PATH}.{e}.up_proj.weight" for e in range(E)), None), "there are 0"),
        ({f"{PATH}.{e}.up_proj.weight": drawn(2, H) for e in range(E)}, "which must be alike"),
        ({f"{PATH}.{e}.up_proj.weight": drawn(SIZE) for e in range(E)}, "a matrix of the same"),
    ],
)
def test_damaged_checkpoints(change: dict[str, Tensor | None], message: str) -> None:
    state = single(("gate_proj", "up_proj", "down_proj"))
    for name, tensor in change.items():
        state.pop(name, None)
        if tensor is not None:
            state[name] = tensor
    with pytest.raises(WeightError, match=message):
        fuse_experts(state)


def test_a_fused_weight_of_another_rank_is_left_for_the_check_of_shapes() -> None:
    assert fuse_experts({f"{PATH}.gate_up_proj": drawn(3)})[f"{PATH}.gate_up_proj"].shape == (3,)


def test_names_of_nxdi() -> None:
    names = {
        "router.linear_router.weight": "router.weight",
        "router.linear_router.bias": "router.bias",
        "expert_mlps.mlp_op.gate_up_proj.weight": "experts.gate_up_proj",
        "expert_mlps.mlp_op.down_proj.weight": "experts.down_proj",
        "expert_mlps.mlp_op.gate_up_proj.bias": "experts.gate_up_proj_bias",
        "expert_mlps.mlp_op.down_proj.bias": "experts.down_proj_bias",
    }
    state = {f"mlp.{name}": drawn(1, seed=seed) for seed, name in enumerate(names)}
    expected = {f"mlp.{new}": state[f"mlp.{old}"] for old, new in names.items()}
    copies = ("router.weight_T", "moe_fused_tkg.post_attention_layernorm.weight")
    state |= {f"mlp.{name}": drawn(1) for name in copies}
    state["other.router.weight_T"] = kept = drawn(1)
    rename_from_nxdi(state, "mlp.")
    assert state == {**expected, "other.router.weight_T": kept}

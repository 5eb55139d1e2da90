from __future__ import annotations

import pytest
import torch

from nxdi.config import NeuronConfig
from nxdi.kernels.masks import Causal, Chunked, MaskPolicy, SlidingWindow
from nxdi.modules.order import InLine, InTree, choose_order
from nxdi.modules.speculation.tree import chain, tree_inputs
from nxdi.types import Phase

SLOTS = torch.tensor([[6, 7, 8, 9], [2, 3, -1, -1]], dtype=torch.int32)
KEYS = torch.arange(12, dtype=torch.int32)[None]
POLICIES = (Causal(), SlidingWindow(3), Chunked(4))


def in_tree(*trees: tuple[int, ...]) -> InTree:
    inputs = tree_inputs(trees, SLOTS)
    return InTree(SLOTS, inputs["token_places"], inputs["tree_mask"])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_chain_is_a_tree(policy: MaskPolicy) -> None:
    for keys in (KEYS, torch.cat([KEYS.expand(2, -1)[:, :6], SLOTS], dim=1)):
        found = in_tree(chain(4), chain(2)).allowed(policy, keys)
        expected = InLine(SLOTS).allowed(policy, keys)
        is_real = (SLOTS >= 0).unsqueeze(2)
        assert torch.equal(found & is_real, expected & is_real)


@pytest.mark.parametrize(
    ("policy", "seen"),
    [  # by the tokens in slots 6 to 9, of which 7 and 8 follow 6, and 9 follows 8
        (Causal(), [{*range(7)}, {*range(8)}, {*range(7), 8}, {*range(7), 8, 9}]),
        (SlidingWindow(3), [{4, 5, 6}, {5, 6, 7}, {5, 6, 8}, {6, 8, 9}]),
        # Place 8, in slot 9, begins a chunk.
        (Chunked(4), [{4, 5, 6}, {4, 5, 6, 7}, {4, 5, 6, 8}, {9}]),
    ],
)
def test_branches_do_not_see_each_other(policy: MaskPolicy, seen: list[set[int]]) -> None:
    order = in_tree((-1, 0, 0, 2), chain(2))
    assert order.places.tolist() == [[6, 7, 7, 8], [2, 3, -1, -1]]
    mask = order.allowed(policy, KEYS)[0]
    assert [set(row.nonzero().flatten().tolist()) for row in mask] == seen


def test_only_verify_graphs_of_trees_have_them() -> None:
    config = NeuronConfig(speculation_length=4, token_tree_config={"0": [1, 2]})
    inputs = {"position_ids": SLOTS, **tree_inputs([chain(4), chain(2)], SLOTS)}
    for phase in Phase:
        order = choose_order(config.for_phase(phase, "eager"))(inputs)
        assert type(order) is (InTree if phase is Phase.VERIFY else InLine)
    plain = NeuronConfig(speculation_length=4).for_phase(Phase.VERIFY, "eager")
    assert type(choose_order(plain)(inputs)) is InLine

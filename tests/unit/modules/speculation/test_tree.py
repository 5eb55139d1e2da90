from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nxdi.errors import ShapeError
from nxdi.modules.speculation.tree import (
    KeptPath,
    accept_path,
    after_chain,
    ancestors,
    chain,
    follow,
    tree_inputs,
)

# 0 - 1 - 2, 1 - 3, 0 - 4 - 5
TREE = (-1, 0, 1, 1, 0, 4)
TOKENS = [7, 8, 9, 6, 8]  # of nodes 1 to 5


def test_a_token_sees_those_that_lead_to_it() -> None:
    assert ancestors(TREE).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 1, 1],
    ]
    assert torch.equal(ancestors(chain(4)), torch.ones(4, 4, dtype=torch.int32).tril())


def test_tokens_in_line_before_a_root() -> None:
    assert after_chain(0, TREE) == TREE
    assert after_chain(2, (-1, 0, 0)) == (-1, 0, 1, 2, 2)
    assert after_chain(3, (-1,)) == chain(4)


@pytest.mark.parametrize(
    ("chosen", "nodes", "num_in_line"),
    [
        ([7, 8, 1, 1, 1, 1], [0, 1, 2], 3),  # the first chain
        ([7, 9, 1, 1, 1, 1], [0, 1, 3], 2),
        ([6, 8, 8, 8, 8, 2], [0, 4, 5], 1),
        ([6, 8, 8, 8, 9, 2], [0, 4], 1),
        ([8, 8, 8, 8, 8, 8], [0], 1),  # right only after a wrong one
    ],
)
def test_the_kept_path(chosen: list[int], nodes: list[int], num_in_line: int) -> None:
    path = follow(TOKENS, TREE, lambda nodes: chosen[nodes[-1]])
    assert path.nodes == nodes
    assert path.tokens == [chosen[node] for node in nodes]
    assert path.num_in_line == num_in_line
    kept = accept(TOKENS, TREE, chosen)
    count = int(kept.num_tokens)
    assert kept.nodes[0].tolist() == nodes + [-1] * (6 - count)
    assert kept.tokens[0].tolist() == path.tokens + [-1] * (6 - count)


def accept(tokens: list[int], parents: tuple[int, ...], chosen: list[int]) -> KeptPath:
    def row(values: list[int]) -> Tensor:
        return torch.tensor([values], dtype=torch.int32)

    sees = ancestors(parents).unsqueeze(0)
    return accept_path(row([-1, *tokens]), row(list(parents)), sees, row(chosen))


def test_of_equal_children_the_first_is_kept() -> None:
    tree, chosen = (-1, 0, 1, 0, 3), [5, 6, 1, 6, 2]
    assert follow([5, 7, 5, 6], tree, lambda nodes: chosen[nodes[-1]]).nodes == [0, 1]
    assert accept([5, 7, 5, 6], tree, chosen).nodes.tolist() == [[0, 1, -1, -1, -1]]


def test_a_choice_is_asked_once_for_each_node_of_the_path() -> None:
    asked = []

    def choose(nodes: list[int]) -> int:
        asked.append(list(nodes))
        return 7 if len(nodes) == 1 else 9

    assert follow(TOKENS, TREE, choose).tokens == [7, 9, 9]
    assert asked == [[0], [0, 1], [0, 1, 3]]


def test_rows_of_different_trees_as_inputs_of_a_graph() -> None:
    slots = torch.tensor([[9, 10, 11], [4, 5, -1]], dtype=torch.int32)
    inputs = tree_inputs([(-1, 0, 0), chain(2)], slots)
    assert inputs["token_places"].tolist() == [[9, 10, 10], [4, 5, -1]]
    assert inputs["tree_mask"].tolist() == [
        [[1, 0, 0], [1, 1, 0], [1, 0, 1]],
        [[1, 0, 0], [1, 1, 0], [0, 0, 0]],
    ]
    assert {value.dtype for value in inputs.values()} == {torch.int32}


@pytest.mark.parametrize("parents", [(-1, 0), (-1, -1, 0), (0, 0, 1), (-1, 2, 0), (-1, 1, 0)])
def test_parents_that_are_no_tree_are_refused(parents: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="of row 0 are not those of a tree of 3 tokens"):
        tree_inputs([parents], torch.tensor([[0, 1, 2]], dtype=torch.int32))


def test_acceptance_traces() -> None:
    class Accept(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> KeptPath:
            return accept_path(*inputs)

    rows = torch.tensor([[-1, *TOKENS], [-1, 3, -1, -1, -1, -1]], dtype=torch.int32)
    parents = torch.tensor([TREE, [-1, 0, -1, -1, -1, -1]], dtype=torch.int32)
    slots = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, -1, -1, -1, -1]], dtype=torch.int32)
    sees = tree_inputs([TREE, chain(2)], slots)["tree_mask"]
    chosen = torch.tensor([[6, 8, 8, 8, 8, 2], [3, 5, 0, 0, 0, 0]], dtype=torch.int32)
    arguments = (rows, parents, sees, chosen)
    found = torch.export.export(Accept(), arguments).module()(*arguments)
    assert found[0].tolist() == [[6, 8, 2, -1, -1, -1], [3, 5, -1, -1, -1, -1]]
    assert found[2].tolist() == [3, 2]
    assert {tensor.dtype for tensor in found} == {torch.int32}

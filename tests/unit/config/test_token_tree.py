"""Trees as options give them, and what of them is refused."""

from __future__ import annotations

from typing import Any

import pytest

from nxdi.config import NeuronConfig
from nxdi.config.token_tree import (
    DynamicShape,
    TreeShape,
    chain_shape,
    parse_medusa_tree,
    parse_token_tree,
)
from nxdi.errors import ConfigError

DYNAMIC = {"step": 3, "branching_factor": 2, "num_inputs": 2, "num_verification_token": 6}


@pytest.mark.parametrize(
    "given", [{"0": [1, 2], "1": ["3"], "2": []}, {0: [5, 9], 5: [2]}, {0: ("7", 1), "7": (4,)}]
)
def test_nodes_are_numbered_depth_first(given: object) -> None:
    shape = parse_token_tree(given)
    assert shape == TreeShape((-1, 0, 1, 0), (0, 0, 0, 1))
    assert isinstance(shape, TreeShape)
    assert (shape.num_nodes, shape.depths, shape.num_candidates) == (4, (0, 1, 2, 1), 2)
    assert shape.first(3) == chain_shape(3)


def test_paths_of_ranks() -> None:
    shape = parse_medusa_tree([[0], [2], [0, 1], [0, 0], [0, 1, 0]])
    assert shape == TreeShape((-1, 0, 1, 1, 3, 0), (0, 0, 0, 1, 0, 2))
    assert shape.num_candidates == 3


def test_a_dynamic_tree_has_nxdis_four_numbers() -> None:
    assert parse_token_tree(DYNAMIC) == DynamicShape(3, 2, 2, 6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "must map nodes to lists"),
        ({}, "must map nodes to lists"),
        ({"0": 1}, "has 1 where a list"),
        ({"0": ["a"]}, "has the node 'a'"),
        ({"0": [-1]}, "has the node -1"),
        ({"0": [True]}, "has the node True"),
        ({"0": [1, 1]}, "node 1 is listed twice"),
        ({"0": [1, 2], "1": [2]}, "node 2 is listed twice"),
        ({"0": [1], 0: [2]}, "a node has two lists"),
        ({"1": [2]}, r"nodes \[1, 2\] do not hang on node 0"),
        ({"0": [1], "2": [3], "3": [2]}, r"nodes \[2, 3\] do not hang"),  # a cycle
        ({"0": [1], "1": [0]}, r"nodes \[0\] do not hang"),
        ({**DYNAMIC, "step": 0}, "each an integer from 1 on"),
        ({**DYNAMIC, "0": [1]}, "and nothing else"),
        ({"step": 1}, "each an integer from 1 on"),
    ],
)
def test_what_is_no_tree_is_refused(given: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_token_tree(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "must be a list of paths"),
        ([], "must be a list of paths"),
        ("00", "must be a list of paths"),
        ([[]], "must be a list of paths"),
        ([[0], [-1]], "must be a list of paths"),
        ([[0], [0.5]], "must be a list of paths"),
        ([[0], [0, 1], [0]], r"the path \[0\] twice"),
        ([[0], [1, 0]], r"the path \[1, 0\] but not \[1\]"),
    ],
)
def test_what_are_no_paths_is_refused(given: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_medusa_tree(given)


HEADS: dict[str, Any] = {
    "is_medusa": True,
    "num_medusa_heads": 2,
    "medusa_speculation_length": 4,
}


def test_medusa_options_say_what_a_step_verifies() -> None:
    config = NeuronConfig(**HEADS)
    assert (config.num_verified, config.num_retractable, config.verifies_trees) == (4, 3, False)
    assert NeuronConfig(**HEADS, speculation_length=4).num_verified == 4
    tree = NeuronConfig(**HEADS, medusa_tree=[[0], [1]])
    assert tree.verifies_trees
    assert tree.tree_shape == parse_medusa_tree([[0], [1]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_medusa_heads": 2}, "set is_medusa=True"),
        ({"medusa_tree": [[0]]}, "set is_medusa=True"),
        ({"medusa_heads_path": "elsewhere"}, "set is_medusa=True"),
        ({**HEADS, "num_medusa_heads": 0}, "num_medusa_heads=0"),
        ({**HEADS, "medusa_speculation_length": 1}, "medusa_speculation_length=1"),
        ({**HEADS, "medusa_speculation_length": 129}, "from 2 to max_length=128"),
        ({**HEADS, "speculation_length": 3}, "leave out speculation_length"),
        ({**HEADS, "token_tree_config": {"0": [1]}}, "leave out speculation_length"),
        ({**HEADS, "medusa_tree": [[0], [0, 0], [0, 0, 0]]}, "path of 3 tokens, but num_medusa"),
        ({**HEADS, "medusa_tree": [[0], [1], [2], [3]]}, "5 nodes.*medusa_speculation_length=4"),
        ({"token_tree_config": {"0": [1]}}, "2 nodes.*speculation_length=0"),
        ({"token_tree_config": DYNAMIC, "speculation_length": 6}, "set speculation_length=7"),
        ({"token_tree_config": [1], "speculation_length": 6}, "must map nodes"),
    ],
)
def test_trees_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NeuronConfig(**options)

from __future__ import annotations

import torch

from nxdi.config.token_tree import DynamicShape, parse_token_tree
from nxdi.modules.speculation.growth import Growth, make_growth


def grow(growth: Growth, chances: dict[tuple[int, ...], list[float]]) -> list[list[int]]:
    """Grow from the probabilities of tokens 0, 1, ... after each path; which paths were asked."""
    asked = []
    while wanted := growth.wanted():
        paths = [tuple(growth.path(node)) for node in wanted]
        asked += [list(path) for path in paths]
        rows = torch.tensor([chances.get(path, [0.6, 0.3, 0.1]) for path in paths])
        best = rows.topk(2)
        growth.add(best.indices, best.values.log())
    return asked


def test_a_fixed_shape_takes_candidates_by_rank() -> None:
    growth = make_growth(parse_token_tree({"0": [1, 2], "1": [3], "2": [4, 5]}))
    asked = grow(growth, {(): [0.1, 0.2, 0.7], (1,): [0.2, 0.8, 0.0]})
    assert asked == [[], [2], [1]]
    # 2 then its likeliest; 1 then both.
    assert growth.grown(9) == ([2, 0, 1, 1, 0], (-1, 0, 1, 0, 3, 3))
    assert growth.grown(3) == ([2, 0, 1], (-1, 0, 1, 0))


def test_a_fixed_shape_may_stop_early() -> None:
    growth = make_growth(parse_token_tree({"0": [1, 2], "1": [3], "2": [4, 5]}))
    growth.add(torch.tensor([[8, 9]]), torch.zeros(1, 2))
    assert growth.grown(9) == ([8, 9], (-1, 0, 0))


def test_a_tree_grows_where_tokens_are_likely() -> None:
    shape = DynamicShape(num_steps=3, num_branches=2, num_expanded=1, num_kept=4)
    growth = make_growth(shape)
    chances = {(): [0.55, 0.45, 0.0], (0,): [0.3, 0.1, 0.0], (0, 0): [0.9, 0.05, 0.0]}
    assert grow(growth, chances) == [[], [0], [0, 0]]
    # Kept: 0 (.55), 1 (.45), 00 (.165), 000 (.149); not 01 (.055) and 001 (.008).
    assert growth.grown(9) == ([0, 0, 0, 1], (-1, 0, 1, 2, 0))
    assert growth.grown(2) == ([0, 1], (-1, 0, 0))


def test_the_likeliest_chain_comes_first() -> None:
    growth = make_growth(DynamicShape(2, 2, 2, 5))
    grow(growth, {(): [0.4, 0.6, 0.0], (0,): [0.05, 0.95, 0.0]})
    # 1 (.6), 0 (.4), 01 (.38), 10 (.36), 11 (.18)
    assert growth.grown(9) == ([1, 0, 1, 0, 1], (-1, 0, 1, 1, 0, 4))

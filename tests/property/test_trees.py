"""Trees of proposed tokens, whatever their shape."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nxdi.config.token_tree import TreeShape, depths_of, parse_medusa_tree, parse_token_tree
from nxdi.generation.speculation.proposals import Proposal
from nxdi.modules.speculation.tree import accept_path, after_chain, ancestors, chain, follow

TOKENS = st.integers(0, 2)  # few, so that proposals are often right and siblings often equal


@st.composite
def trees(draw: st.DrawFn, most: int = 9) -> tuple[int, ...]:
    """Parents of 1 to `most` nodes, in any order in which they come first."""
    size = draw(st.integers(1, most))
    return (-1, *(draw(st.integers(0, node - 1)) for node in range(1, size)))


def path_to(parents: tuple[int, ...], node: int) -> list[int]:
    found = [node]
    while parents[found[-1]] >= 0:
        found.append(parents[found[-1]])
    return found


@given(trees())
def test_the_mask_holds_each_path(parents: tuple[int, ...]) -> None:
    sees = ancestors(parents)
    for node in range(len(parents)):
        assert sees[node].nonzero().flatten().tolist() == sorted(path_to(parents, node))
    assert (sees.sum(dim=1) - 1).tolist() == list(depths_of(parents))


@given(trees(), st.integers(0, 4))
def test_tokens_before_the_root_are_seen_by_all(parents: tuple[int, ...], num_before: int) -> None:
    sees = ancestors(after_chain(num_before, parents))
    assert bool(sees[num_before:, :num_before].all())
    assert torch.equal(sees[num_before:, num_before:], ancestors(parents))


@given(trees())
def test_parsing_keeps_the_tree_and_puts_it_depth_first(
    parents: tuple[int, ...],
) -> None:
    children: dict[str, list[object]] = {}
    for node, parent in enumerate(parents):
        if parent >= 0:
            children.setdefault(str(parent), []).append(node)
    if not children:
        return
    shape = parse_token_tree(children)
    assert isinstance(shape, TreeShape)
    assert sorted(shape.depths) == sorted(depths_of(parents))
    assert all(parent < node for node, parent in enumerate(shape.parents))
    # Depth first: each node hangs on the path to the one before it.
    for node in range(1, shape.num_nodes):
        assert shape.parents[node] in path_to(shape.parents, node - 1)
    # And as paths of ranks it is the same.
    paths = [
        [shape.ranks[each] for each in reversed(path_to(shape.parents, node))][1:]
        for node in range(1, shape.num_nodes)
    ]
    assert parse_medusa_tree(paths[::-1]) == shape


@given(st.data(), trees())
def test_tensors_and_the_host_keep_the_same_path(
    data: st.DataObject, parents: tuple[int, ...]
) -> None:
    size = len(parents)
    tokens = data.draw(st.lists(TOKENS, min_size=size - 1, max_size=size - 1))
    chosen = data.draw(st.lists(TOKENS, min_size=size, max_size=size))
    path = follow(tokens, parents, lambda nodes: chosen[nodes[-1]])

    def row(values: list[int]) -> Tensor:
        return torch.tensor([values], dtype=torch.int32)

    sees = ancestors(parents).unsqueeze(0)
    kept = accept_path(row([-1, *tokens]), row(list(parents)), sees, row(chosen))
    count = int(kept.num_tokens)
    assert kept.nodes[0, :count].tolist() == path.nodes
    assert kept.tokens[0, :count].tolist() == path.tokens
    # What is kept is what decoding one by one would have chosen.
    assert [tokens[node - 1] for node in path.nodes[1:]] == path.tokens[:-1]


@given(trees(), st.integers(0, 9), st.integers(0, 9))
def test_a_cut_proposal_is_a_tree(parents: tuple[int, ...], num_nodes: int, depth: int) -> None:
    proposal = Proposal(list(range(1, len(parents))), None, parents)
    cut = proposal.within(num_nodes, depth)
    assert len(cut.tokens) <= num_nodes
    assert cut.depth <= depth
    for node, token in enumerate(cut.tokens, start=1):
        above = cut.parents[node]
        assert parents[token] == (cut.tokens[above - 1] if above else 0)
    assert chain(1) == cut.parents[:1]

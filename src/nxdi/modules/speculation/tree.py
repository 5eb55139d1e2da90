"""Trees of proposed tokens: who sees whom, and which path of them is kept. Pure functions.

A row's last token is the root, node 0. Each other node is a token that may follow its parent, which
has a lower number; a chain is a tree in which each node follows the one before. The target has
looked at all nodes in one step and has chosen a token after each: the kept path goes down from the
root as long as a child is what was chosen.

Legend: B rows, N nodes. Typical shapes: B 1 to 64, N 4 to 64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from nxdi.errors import ShapeError
from nxdi.modules.speculation.acceptance import NO_TOKEN


def chain(num_nodes: int) -> tuple[int, ...]:
    """The parents of a root and the tokens that follow each other."""
    return tuple(range(-1, num_nodes - 1))


def after_chain(num_before: int, parents: Sequence[int]) -> tuple[int, ...]:
    """The parents where `num_before` tokens in line come before the root of a tree."""
    return (*chain(num_before), *(parent + num_before for parent in parents))


@lru_cache(maxsize=256)
def ancestors(parents: tuple[int, ...]) -> Tensor:
    """Which nodes [N, N] each node sees: itself and those that lead to it. int32, 1 = sees.

    Not to be changed: calls share it.
    """
    sees = torch.eye(len(parents), dtype=torch.int32)
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[node] |= sees[parent]
    return sees


def tree_inputs(trees: Sequence[tuple[int, ...]], slots: Tensor) -> dict[str, Tensor]:
    """The graph inputs `token_places` [B, N] and `tree_mask` [B, N, N] of some rows, int32.

    trees: the parents of each row's tokens; slots [B, N]: where they go, -1 = padding, on the
    right.
    Raises: ShapeError for parents that are no tree of as many tokens.
    """
    places, sees = torch.full_like(slots, -1), slots.new_zeros(*slots.shape, slots.shape[1])
    for row, (parents, num_tokens) in enumerate(zip(trees, (slots >= 0).sum(dim=1), strict=True)):
        size = len(parents)
        is_tree = all((parent >= 0) == (node > 0) for node, parent in enumerate(parents))
        if size != num_tokens or any(p >= node for node, p in enumerate(parents)) or not is_tree:
            raise ShapeError(
                f"parents={list(parents)} of row {row} are not those of a tree of "
                f"{int(num_tokens)} tokens: -1 for the first, and for each other one the number of "
                "one before it"
            )
        sees[row, :size, :size] = ancestors(parents)
        places[row, :size] = slots[row, 0] + sees[row, :size].sum(dim=1) - 1
    return {"token_places": places, "tree_mask": sees}


class Path(NamedTuple):
    """What a step keeps: `nodes` from the root down, and `tokens`, what was chosen after each."""

    nodes: list[int]
    tokens: list[int]

    @property
    def num_in_line(self) -> int:
        """How many nodes have the number of their place on the path: the first ones, at least 1."""
        return next((i for i, node in enumerate(self.nodes) if i != node), len(self.nodes))


def follow(
    tokens: Sequence[int], parents: Sequence[int], choose: Callable[[list[int]], int]
) -> Path:
    """Go down from the root: to the child that is what the target chooses, until there is none.

    tokens: of the nodes but the root [N - 1]; parents: of all nodes [N]; choose: the token that the
    target chooses after the last node of a path, asked once for each node of the kept path. With
    greedy choices, and with choices that follow from a seed and a position, that is plain decoding.
    So it is where each choice is a draw of its own: the tree is fixed before it is drawn.
    """
    children: dict[tuple[int, int], int] = {}
    for node, token in enumerate(tokens, start=1):
        children.setdefault((parents[node], token), node)
    nodes, chosen = [0], list[int]()
    while True:
        chosen.append(choose(nodes))
        child = children.get((nodes[-1], chosen[-1]))
        if child is None:
            return Path(nodes, chosen)
        nodes.append(child)


class KeptPath(NamedTuple):
    """What a step brings each row, as tensors.

    tokens, nodes [B, N]: the tokens chosen along the kept path, and its nodes from the root down;
    the first `num_tokens` [B] of them real, then -1. int32.
    """

    tokens: Tensor
    nodes: Tensor
    num_tokens: Tensor


def accept_path(tokens: Tensor, parents: Tensor, sees: Tensor, chosen: Tensor) -> KeptPath:
    """`follow` for a batch, without a branch on a value, for graphs.

    Shapes: tokens int32 [B, N], -1 for padding; the root's counts for nothing. parents int32
    [B, N], -1 for the root and padding. sees int32 [B, N, N]: `ancestors`. chosen int32 [B, N].
    Children of a node are distinct tokens; of equal ones the first is kept.
    """
    num_nodes = tokens.shape[1]
    places = torch.arange(num_nodes, dtype=torch.int32, device=tokens.device)
    is_root = places == 0
    before = chosen.gather(1, parents.clamp(min=0).long())
    is_right = (tokens == before) & (tokens != NO_TOKEN) & (parents >= 0)
    is_twin = (parents.unsqueeze(2) == parents.unsqueeze(1)) & (
        tokens.unsqueeze(2) == tokens.unsqueeze(1)
    )
    has_elder = (is_twin & (places.unsqueeze(1) > places)).any(dim=2)
    is_wrong = ~((is_right & ~has_elder) | is_root)
    # A node is kept if nothing on the way to it is wrong; the path goes through one of each depth.
    num_wrong = (sees * is_wrong.unsqueeze(1).int()).sum(dim=2, dtype=torch.int32)
    is_kept = (num_wrong == 0) & ~is_wrong  # padding sees nothing, and is wrong itself
    count = is_kept.sum(dim=1, dtype=torch.int32)
    # Kept nodes first, in their order, which is that of their depth.
    order = torch.where(is_kept, places, places + num_nodes)
    nodes = order.sort(dim=1).values
    nodes = torch.where(nodes < num_nodes, nodes, -1).to(torch.int32)
    along = chosen.gather(1, nodes.clamp(min=0).long())
    along = torch.where(nodes >= 0, along, NO_TOKEN).to(torch.int32)
    return KeptPath(along, nodes, count)

"""Growing trees of proposed tokens, depth by depth, from the candidates that a draft head gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from torch import Tensor

from nxdi.config.token_tree import DynamicShape, TreeShape

_NO_PARENT = -1


class Grown(NamedTuple):
    """A tree as a proposal has it: the tokens of all nodes but the root, the parents of all."""

    tokens: list[int]
    parents: tuple[int, ...]


class Growth(Protocol):
    """One tree while it grows. Nodes are numbered as they come, the root is 0."""

    def wanted(self) -> list[int]:
        """The nodes whose candidates are wanted next; none when the tree is grown."""
        ...

    def add(self, tokens: Tensor, logprobs: Tensor) -> None:
        """The candidates of the nodes that are wanted, likeliest first.

        Shapes: tokens int [n, K]; logprobs float [n, K], each given the tokens before it.
        """
        ...

    def path(self, node: int) -> list[int]:
        """The tokens from the first below the root to `node`."""
        ...

    def grown(self, most: int) -> Grown:
        """The tree of at most `most` proposed tokens, its likeliest chain first."""
        ...


@dataclass
class _Nodes:
    """What growing trees have: per node its parent, its token, how likely the path to it is."""

    parents: list[int] = field(default_factory=lambda: [_NO_PARENT])
    tokens: list[int] = field(default_factory=lambda: [-1])
    logprobs: list[float] = field(default_factory=lambda: [0.0])

    def put(self, parent: int, token: int, logprob: float) -> int:
        self.parents.append(parent)
        self.tokens.append(token)
        self.logprobs.append(self.logprobs[parent] + logprob)
        return len(self.parents) - 1

    def path(self, node: int) -> list[int]:
        tokens = []
        while node:
            tokens.append(self.tokens[node])
            node = self.parents[node]
        return tokens[::-1]

    def take(self, kept: Sequence[int]) -> Grown:
        """The tree of some nodes, which have their parents among them; likelier children first."""
        below: dict[int, list[int]] = {}
        for node in kept:
            below.setdefault(self.parents[node], []).append(node)
        tokens, parents, left = list[int](), [_NO_PARENT], [(0, 0)]
        while left:
            node, place = left.pop()
            if node:
                tokens.append(self.tokens[node])
                parents.append(place)
                place = len(tokens)
            likely = sorted(below.get(node, ()), key=lambda child: self.logprobs[child])
            left += [(child, place) for child in likely]
        return Grown(tokens, tuple(parents))


class StaticGrowth:
    """The tree of a fixed shape: each node is the candidate of its rank."""

    def __init__(self, shape: TreeShape) -> None:
        self._shape, self._depths = shape, shape.depths
        self._children = [
            [child for child, parent in enumerate(shape.parents) if parent == node]
            for node in range(shape.num_nodes)
        ]
        self._tokens = [-1] * shape.num_nodes
        self._depth = 0

    def wanted(self) -> list[int]:
        return [
            node
            for node, depth in enumerate(self._depths)
            if depth == self._depth and self._children[node]
        ]

    def add(self, tokens: Tensor, logprobs: Tensor) -> None:
        for node, candidates in zip(self.wanted(), tokens.tolist(), strict=True):
            for child in self._children[node]:
                self._tokens[child] = candidates[self._shape.ranks[child]]
        self._depth += 1

    def path(self, node: int) -> list[int]:
        tokens = []
        while node:
            tokens.append(self._tokens[node])
            node = self._shape.parents[node]
        return tokens[::-1]

    def grown(self, most: int) -> Grown:
        # Depth by depth first: what is not grown yet comes after all that is.
        shape = self._shape.first(most + 1)
        is_grown = [depth <= self._depth for depth in shape.depths]
        kept = [node for node, is_there in enumerate(is_grown) if is_there]
        places = {node: place for place, node in enumerate(kept)}
        parents = tuple(places.get(shape.parents[node], _NO_PARENT) for node in kept)
        return Grown([self._tokens[node] for node in kept[1:]], parents)


class DynamicGrowth:
    """Grows below the likeliest nodes of each depth, and keeps the likeliest nodes of all.

    Source: arXiv:2406.16858 section 4.
    """

    def __init__(self, shape: DynamicShape) -> None:
        self._shape, self._nodes = shape, _Nodes()
        self._wanted, self._num_steps = [0], 0

    def wanted(self) -> list[int]:
        return self._wanted

    def add(self, tokens: Tensor, logprobs: Tensor) -> None:
        most, nodes = self._shape.num_branches, self._nodes
        rows = zip(self._wanted, tokens.tolist(), logprobs.tolist(), strict=True)
        new = [
            nodes.put(parent, token, logprob)
            for parent, candidates, chances in rows
            for token, logprob in zip(candidates[:most], chances[:most], strict=True)
        ]
        self._num_steps += 1
        is_over = self._num_steps == self._shape.num_steps
        self._wanted = [] if is_over else self._likeliest(new, self._shape.num_expanded)

    def path(self, node: int) -> list[int]:
        return self._nodes.path(node)

    def grown(self, most: int) -> Grown:
        every = range(1, len(self._nodes.parents))
        # A path is never likelier than its start, and of equals the older is taken.
        return self._nodes.take(self._likeliest(every, min(most, self._shape.num_kept)))

    def _likeliest(self, nodes: Sequence[int], most: int) -> list[int]:
        return sorted(nodes, key=lambda node: -self._nodes.logprobs[node])[:most]


def make_growth(shape: TreeShape | DynamicShape) -> Growth:
    """The growth of one tree, as `token_tree_config` asks for."""
    return DynamicGrowth(shape) if isinstance(shape, DynamicShape) else StaticGrowth(shape)

"""Trees of proposed tokens as options give them: NxDI's token trees, Medusa's paths of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nxdi.errors import ConfigError

if TYPE_CHECKING:
    from nxdi.config.neuron import NeuronConfig

ROOT = 0  # the number of the node that is a row's last token
_NO_PARENT = -1
_MEDUSA_OPTIONS = (
    "num_medusa_heads",
    "medusa_heads_path",
    "medusa_speculation_length",
    "medusa_tree",
)


@dataclass(frozen=True)
class TreeShape:
    """Which tokens are proposed together, before it is known which they are.

    Node 0 is the row's last token. parents: the node that each follows, a lower number; -1 for node
    0. ranks: which of the candidates after its parent a node is, 0 the likeliest. The nodes are in
    depth-first order, the likeliest child first, so that the likeliest chain has the first numbers.
    """

    parents: tuple[int, ...]
    ranks: tuple[int, ...]

    @property
    def num_nodes(self) -> int:
        return len(self.parents)

    @property
    def depths(self) -> tuple[int, ...]:
        """How many nodes lead to each, the root's 0."""
        return depths_of(self.parents)

    @property
    def num_candidates(self) -> int:
        """How many candidates the widest node needs."""
        return max(self.ranks[1:], default=-1) + 1

    def first(self, most: int) -> TreeShape:
        """The first nodes, at most so many: a tree too, since parents come first."""
        return TreeShape(self.parents[:most], self.ranks[:most])


@dataclass(frozen=True)
class DynamicShape:
    """A tree that grows where tokens are likely.

    num_steps: its depth. num_branches: candidates of a node. num_expanded: nodes of one depth that
    get candidates. num_kept: proposed tokens that are verified in the end.
    Source: arXiv:2406.16858.
    """

    num_steps: int
    num_branches: int
    num_expanded: int
    num_kept: int

    @property
    def num_nodes(self) -> int:
        return self.num_kept + 1

    @property
    def num_candidates(self) -> int:
        return self.num_branches


# NxDI's names of the same.
_DYNAMIC = {
    "step": "num_steps",
    "branching_factor": "num_branches",
    "num_inputs": "num_expanded",
    "num_verification_token": "num_kept",
}


def depths_of(parents: Sequence[int]) -> tuple[int, ...]:
    """The depth of each node, 0 for one without a parent (-1); parents have lower numbers."""
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent == _NO_PARENT else depths[parent] + 1)
    return tuple(depths)


def chain_shape(num_tokens: int) -> TreeShape:
    """The likeliest candidate after each of `num_tokens` tokens, the row's last one included."""
    return TreeShape(tuple(range(_NO_PARENT, num_tokens - 1)), (0,) * num_tokens)


def parse_token_tree(given: object) -> TreeShape | DynamicShape:
    """NxDI's `token_tree_config`.

    Of a static tree {node: [its children, the likeliest first]}, numbers as such or as text, the
    row's last token being node 0. Of a dynamic one {"step", "branching_factor", "num_inputs",
    "num_verification_token"}, each at least 1.
    Raises: ConfigError for anything else: other keys, a node that does not hang on node 0 or that
    has two parents.
    """
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(
            f"token_tree_config={given!r} must map nodes to lists of nodes, such as "
            '{"0": [1, 2], "1": [3]}'
        )
    if "step" in given:
        return _parse_dynamic(given)
    children = {_node(node): _nodes(of_node) for node, of_node in given.items()}
    every = [child for of_node in children.values() for child in of_node]
    twice = sorted({node for node in every if every.count(node) > 1})
    if twice or len(children) < len(given):
        what = f"node {twice[0]} is listed twice" if twice else "a node has two lists"
        raise ConfigError(
            f"token_tree_config: {what}; each node has one parent, and its children in one list"
        )
    shape = _walk(children)
    loose = sorted({*children, *every, ROOT} - set(shape.numbers))
    if loose or ROOT in every:
        raise ConfigError(
            f"token_tree_config: nodes {loose or [ROOT]} do not hang on node 0, the row's last "
            "token; list each below its parent, and node 0 below none"
        )
    return shape.tree


@dataclass(frozen=True)
class _Walked:
    tree: TreeShape
    numbers: tuple[int, ...]  # of the nodes as they were given


def _walk(children: Mapping[int, Sequence[int]]) -> _Walked:
    """What hangs on the root, depth first; each node has one parent at most."""
    numbers, parents, ranks = list[int](), list[int](), list[int]()
    left = [(ROOT, _NO_PARENT, 0)]
    while left:
        node, parent, rank = left.pop()
        place = len(numbers)
        numbers.append(node)
        parents.append(parent)
        ranks.append(rank)
        below = [(child, place, rank) for rank, child in enumerate(children.get(node, ()))]
        left += [item for item in reversed(below) if item[0] != ROOT]
    return _Walked(TreeShape(tuple(parents), tuple(ranks)), tuple(numbers))


def _parse_dynamic(given: Mapping[Any, Any]) -> DynamicShape:
    unfit = [name for name in _DYNAMIC if not _is_count(given.get(name), lowest=1)]
    if unfit or len(given) > len(_DYNAMIC):
        raise ConfigError(
            f"token_tree_config={dict(given)!r} of a dynamic tree has {', '.join(_DYNAMIC)}, each "
            "an integer from 1 on, and nothing else"
        )
    return DynamicShape(**{ours: given[theirs] for theirs, ours in _DYNAMIC.items()})


def parse_medusa_tree(paths: object) -> TreeShape:
    """`medusa_tree` as published: [[0], [0, 0], [1], [0, 1], ...], ranks from the root to a node.

    Source: arXiv:2401.10774 section 2.1.2 and its `medusa_choices`.
    Raises: ConfigError for a path that is no list of ranks, occurs twice, or whose start is
    missing.
    """
    is_list = isinstance(paths, Sequence) and not isinstance(paths, str) and len(paths)
    if not is_list or not all(_is_path(path) for path in paths):  # type: ignore[attr-defined]  # it is a list
        raise ConfigError(
            f"medusa_tree={paths!r} must be a list of paths of ranks from 0 on, such as "
            "[[0], [0, 0], [1]]"
        )
    every = sorted(tuple(path) for path in paths)  # type: ignore[attr-defined]  # as above
    places = {(): ROOT, **{path: place for place, path in enumerate(every, start=1)}}
    if len(places) <= len(every):
        twice = next(path for path in every if every.count(path) > 1)
        raise ConfigError(f"medusa_tree has the path {list(twice)} twice; leave one out")
    loose = next((path for path in every if path[:-1] not in places), None)
    if loose is not None:
        raise ConfigError(
            f"medusa_tree has the path {list(loose)} but not {list(loose[:-1])}, which it begins "
            "with; add that one"
        )
    parents = (_NO_PARENT, *(places[path[:-1]] for path in every))
    return TreeShape(parents, (0, *(path[-1] for path in every)))


def _is_path(path: object) -> bool:
    is_list = isinstance(path, (list, tuple)) and len(path)
    return bool(is_list) and all(_is_count(rank, lowest=0) for rank in path)  # type: ignore[attr-defined]  # it is one


def _is_count(value: object, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def _nodes(given: object) -> list[int]:
    if not isinstance(given, (list, tuple)):
        raise ConfigError(f"token_tree_config has {given!r} where a list of nodes belongs")
    return [_node(node) for node in given]


def _node(given: object) -> int:
    if isinstance(given, str) and given.isdecimal():
        given = int(given)
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise ConfigError(f"token_tree_config has the node {given!r}; nodes are numbers from 0 on")
    return given


def check_tree_options(config: NeuronConfig) -> None:
    """Raises: ConfigError for trees and Medusa heads that a verify step has no room for."""
    _check_medusa(config)
    if config.tree_shape is None:
        return
    name = "medusa_tree" if config.is_medusa else "token_tree_config"
    num_nodes, width = config.tree_shape.num_nodes, config.num_verified
    if num_nodes > width:
        limit = "medusa_speculation_length" if config.is_medusa else "speculation_length"
        raise ConfigError(
            f"{name} has {num_nodes} nodes, the row's last token included, but {limit}={width} "
            f"tokens of a row are verified; set {limit}={num_nodes}, or take a smaller tree"
        )


def _check_medusa(config: NeuronConfig) -> None:
    given = {name: getattr(config, name) for name in _MEDUSA_OPTIONS}
    if not config.is_medusa:
        if any(given.values()):
            raise ConfigError(f"{given} are options of Medusa heads; set is_medusa=True as well")
        return
    num_heads, width = config.num_medusa_heads, config.medusa_speculation_length
    if num_heads < 1 or not 2 <= width <= config.max_length:
        raise ConfigError(
            f"is_medusa=True with num_medusa_heads={num_heads} and medusa_speculation_length="
            f"{width}: there must be a head, and a step must verify from 2 to max_length="
            f"{config.max_length} tokens of a row, its last one included"
        )
    if config.speculation_length not in (0, width) or config.token_tree_config is not None:
        raise ConfigError(
            "with is_medusa=True medusa_speculation_length and medusa_tree say what a step "
            "verifies; leave out speculation_length and token_tree_config"
        )
    if config.medusa_tree is not None:
        depth = max(parse_medusa_tree(config.medusa_tree).depths)
        if depth > num_heads:
            raise ConfigError(
                f"medusa_tree has a path of {depth} tokens, but num_medusa_heads={num_heads} "
                "propose one each; take shorter paths"
            )

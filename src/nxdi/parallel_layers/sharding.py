"""How a full weight becomes the piece of one rank, as data attached to the parameter.

A parameter without a rule is replicated. `Shard` rules are pure: they know shapes and indices, not
devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from nxdi.errors import ConfigError


class Shard(Protocol):
    """The rule that cuts one parameter."""

    def full_shape(self, local: tuple[int, ...]) -> tuple[int, ...]:
        """Shape that a checkpoint must have, given the shape of one rank's piece."""
        ...

    def cut(self, full: Tensor, rank: int, local: tuple[int, ...]) -> Tensor:
        """Piece of `rank`; a view of `full` where memory allows."""
        ...


@dataclass(frozen=True)
class DimShard:
    """Equal consecutive pieces along `dim`; the last ones are padded with zeros."""

    dim: int
    full_size: int

    def full_shape(self, local: tuple[int, ...]) -> tuple[int, ...]:
        return _with_size(local, self.dim, self.full_size)

    def cut(self, full: Tensor, rank: int, local: tuple[int, ...]) -> Tensor:
        size = local[self.dim]
        start = min(rank * size, self.full_size)
        piece = full.narrow(self.dim, start, min(size, self.full_size - start))
        return _zero_padded(piece, self.dim, size)


@dataclass(frozen=True)
class HeadShard:
    """Whole attention heads along `dim`, in the order of a `HeadLayout`; head -1 is all zeros."""

    dim: int
    heads: tuple[tuple[int, ...], ...]
    head_dim: int
    num_heads: int

    def full_shape(self, local: tuple[int, ...]) -> tuple[int, ...]:
        return _with_size(local, self.dim, self.num_heads * self.head_dim)

    def cut(self, full: Tensor, rank: int, local: tuple[int, ...]) -> Tensor:
        heads = self.heads[rank]
        if heads == tuple(range(heads[0], heads[0] + len(heads))) and heads[0] >= 0:
            return full.narrow(self.dim, heads[0] * self.head_dim, local[self.dim])
        pieces = [self._head(full, head) for head in heads]
        return torch.cat(pieces, self.dim)

    def _head(self, full: Tensor, head: int) -> Tensor:
        if head < 0:
            return full.new_zeros(_with_size(tuple(full.shape), self.dim, self.head_dim))
        return full.narrow(self.dim, head * self.head_dim, self.head_dim)


@dataclass(frozen=True)
class ExpertLayout:
    """Which experts each rank holds, and which part of their width.

    Rank r has the experts of place r // tp_degree, and of their width part r % tp_degree.
    """

    num_experts: int
    tp_degree: int
    ep_degree: int

    @property
    def num_local(self) -> int:
        """Experts of one rank."""
        return self.num_experts // self.ep_degree

    def place(self, rank: int) -> tuple[int, int]:
        """(which experts, which part of their width)."""
        return divmod(rank, self.tp_degree)


@dataclass(frozen=True)
class ExpertShard:
    """A weight of all experts [E, ...]: whole experts, and of each a part of its width along `dim`.

    full_size: the width. parts: how many of that width stand one after the other (gate and up are
    2), each of which is cut.
    """

    layout: ExpertLayout
    dim: int
    full_size: int
    parts: int = 1

    def full_shape(self, local: tuple[int, ...]) -> tuple[int, ...]:
        whole = (self.layout.num_experts, *local[1:])
        return _with_size(whole, self.dim, self.parts * self.full_size)

    def cut(self, full: Tensor, rank: int, local: tuple[int, ...]) -> Tensor:
        experts, part = self.layout.place(rank)
        own = full.narrow(0, experts * local[0], local[0])
        if self.layout.tp_degree == 1:
            return own
        width = DimShard(self.dim, self.full_size)
        size = _with_size(local, self.dim, local[self.dim] // self.parts)
        pieces = [width.cut(piece, part, size) for piece in own.chunk(self.parts, self.dim)]
        return torch.cat(pieces, self.dim)


@dataclass(frozen=True)
class ExpertBiasShard:
    """A bias [E, H] of the experts' results: with the first part of the width, elsewhere zeros.

    The parts are summed, and so it counts once.
    """

    layout: ExpertLayout

    def full_shape(self, local: tuple[int, ...]) -> tuple[int, ...]:
        return (self.layout.num_experts, *local[1:])

    def cut(self, full: Tensor, rank: int, local: tuple[int, ...]) -> Tensor:
        experts, part = self.layout.place(rank)
        own = full.narrow(0, experts * local[0], local[0])
        return own if part == 0 else torch.zeros_like(own)


@dataclass(frozen=True)
class SameOnEveryRank:
    """The first rank's piece, for all: of modules that each rank holds whole beside cut ones."""

    shard: Shard

    def full_shape(self, local: tuple[int, ...]) -> tuple[int, ...]:
        return self.shard.full_shape(local)

    def cut(self, full: Tensor, rank: int, local: tuple[int, ...]) -> Tensor:
        return self.shard.cut(full, 0, local)


@dataclass(frozen=True)
class TurnedShard:
    """The rule of a matrix that is kept transposed, while checkpoints have it as `shard` says."""

    shard: Shard

    def full_shape(self, local: tuple[int, ...]) -> tuple[int, ...]:
        return self.shard.full_shape(local[::-1])

    def cut(self, full: Tensor, rank: int, local: tuple[int, ...]) -> Tensor:
        return self.shard.cut(full, rank, local[::-1]).T


def _with_size(shape: tuple[int, ...], dim: int, size: int) -> tuple[int, ...]:
    return (*shape[:dim], size, *shape[dim + 1 :])


def _zero_padded(piece: Tensor, dim: int, size: int) -> Tensor:
    missing = size - piece.shape[dim]
    if missing == 0:
        return piece
    padding = piece.new_zeros(_with_size(tuple(piece.shape), dim, missing))
    return torch.cat([piece, padding], dim)


@dataclass(frozen=True)
class HeadLayout:
    """Which attention heads each rank computes; -1 marks a padding head.

    Query head j of a rank attends with key/value head j // (len(q) / len(kv)) of the same rank.
    """

    q: tuple[tuple[int, ...], ...]
    kv: tuple[tuple[int, ...], ...]

    @property
    def num_q_per_rank(self) -> int:
        return len(self.q[0])

    @property
    def num_kv_per_rank(self) -> int:
        return len(self.kv[0])


def plan_heads(num_q: int, num_kv: int, tp_degree: int) -> HeadLayout:
    """Spread grouped-query attention over ranks for any head counts.

    With kv heads to spare, each rank takes whole groups. With fewer kv heads than ranks, a kv head
    is copied to several ranks and its query heads are dealt among them. Heads of zeros fill what
    does not divide.
    Raises: ConfigError if `num_q` is not a multiple of `num_kv`.
    """
    if num_kv < 1 or num_q % num_kv:
        raise ConfigError(
            f"num_attention_heads={num_q} must be a positive multiple of "
            f"num_key_value_heads={num_kv}"
        )
    group = num_q // num_kv
    padded_kv = num_kv
    while padded_kv % tp_degree and tp_degree % padded_kv:
        padded_kv += 1
    copies = max(1, tp_degree // padded_kv)
    dealt = -(-group // copies)
    q, kv = [], []
    for rank in range(tp_degree):
        first = rank * padded_kv // tp_degree
        own = range(first, first + max(1, padded_kv // tp_degree))
        kv.append(tuple(head if head < num_kv else -1 for head in own))
        place = rank % copies
        q.append(
            tuple(
                _query_head(head, place * dealt + j, group, num_kv)
                for head in own
                for j in range(dealt)
            )
        )
    return HeadLayout(tuple(q), tuple(kv))


def _query_head(kv_head: int, place: int, group: int, num_kv: int) -> int:
    return kv_head * group + place if kv_head < num_kv and place < group else -1


def set_shard(parameter: nn.Parameter, shard: Shard) -> None:
    """Attach the rule that cuts this parameter out of a full checkpoint."""
    parameter.shard = shard  # type: ignore[attr-defined]  # carried by the parameter


def shard_of(parameter: Tensor) -> Shard | None:
    """The rule of a parameter, ours or in neuronx_distributed's attributes; None = replicated."""
    shard = getattr(parameter, "shard", None)
    if shard is not None:
        return shard  # type: ignore[no-any-return]  # set by set_shard
    if getattr(parameter, "tensor_model_parallel", False):
        dim: int = parameter.partition_dim  # type: ignore[attr-defined]  # NxD's name
        ranks: int = parameter.num_partitions  # type: ignore[attr-defined]  # NxD's name
        return DimShard(dim, parameter.shape[dim] * ranks)
    return None

"""What a rank has to do in one step of a graph: products, bytes, collectives."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch

from nxdi.kernels.ops import AttendCall


@dataclass(frozen=True)
class Product:
    """A product with a weight: [rows, inner] @ [inner, columns], in the dtype of the rows."""

    rows: int
    inner: int
    columns: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Collective:
    """num_bytes: of the tensor as it is whole, before a cut or after a gather."""

    op: str
    num_bytes: int
    group_size: int

    @property
    def sent_bytes(self) -> float:
        """What a rank sends, in a ring: every other rank's piece, twice if it is also summed."""
        passes = 2 if self.op == "all_reduce" else 1
        return passes * self.num_bytes * (self.group_size - 1) / self.group_size


@dataclass
class Work:
    """One step on one rank.

    weight_flops: of products with weights; attention_flops: of all others, as if every query saw
    every key of the graph. Bytes: read of weights and of caches, written to caches, and moved by
    activations into and out of products with weights. num_products: matrix products that follow
    one another. workspace_bytes: the largest such product's activations. attend_calls: each kind of
    attention.
    """

    weight_flops: int = 0
    attention_flops: int = 0
    weight_bytes: int = 0
    cache_bytes: int = 0
    written_bytes: int = 0
    activation_bytes: int = 0
    num_products: int = 0
    workspace_bytes: int = 0
    products: Counter[Product] = field(default_factory=Counter)
    collectives: Counter[Collective] = field(default_factory=Counter)
    attend_calls: set[AttendCall] = field(default_factory=set)

    @property
    def flops(self) -> int:
        return self.weight_flops + self.attention_flops

    @property
    def memory_bytes(self) -> int:
        """All that moves between the core and its memory."""
        moved = self.weight_bytes + self.cache_bytes + self.written_bytes
        return moved + self.activation_bytes

    @property
    def num_collectives(self) -> int:
        return sum(self.collectives.values())

    @property
    def collective_bytes(self) -> int:
        """Bytes that a rank sends."""
        return round(sum(one.sent_bytes * count for one, count in self.collectives.items()))

"""How the scales of a weight, and values that share bytes, are cut where the weight is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nxdi.config.quantization import Block
from nxdi.errors import ConfigError, UnsupportedError
from nxdi.modules.quantization.blocks import num_blocks
from nxdi.parallel_layers.sharding import DimShard, ExpertShard, HeadShard, Shard

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ScaleShard:
    """The rule of a weight's scales: each rank gets those of the blocks that its piece touches.

    weight: the weight's rule; piece: what one rank has of it. block: of the whole weight;
    local_block: of the piece, smaller where the piece begins or ends within a block.
    """

    weight: Any  # a Shard, and hashable as all of them are
    piece: Shape
    block: Block
    local_block: Block

    def full_shape(self, local: Shape) -> Shape:
        sizes: Shape = self.weight.full_shape(self.piece)
        return tuple(
            num_blocks(size, unit, parts_along(self.weight, dim))
            for dim, (size, unit) in enumerate(zip(sizes, self.block, strict=True))
        )

    def cut(self, full: Tensor, rank: int, local: Shape) -> Tensor:
        for dim, unit in enumerate(self.local_block):
            if unit is not None:
                places = _places(self.weight, self.piece, dim, self.block[dim], rank)
                places = places[::unit].to(full.device)
                found = full.index_select(dim, (places - 1).clamp(min=0))
                # What is padded has no block, and the scale 0.
                here = (places > 0).view([-1 if d == dim else 1 for d in range(full.dim())])
                full = torch.where(here, found, torch.zeros_like(found))
        return full


def local_block(weight: Any, piece: Shape, block: Block) -> Block:
    """The largest blocks into which every rank's piece can be divided, each with one scale.

    weight: its rule, or None.
    """
    if weight is None:
        return block
    return tuple(
        None if unit is None else _local_unit(weight, piece, dim, unit)
        for dim, unit in enumerate(block)
    )


def parts_along(weight: Shard | None, dim: int) -> int:
    """How many weights stand one after the other along a dimension."""
    return weight.parts if isinstance(weight, ExpertShard) and weight.dim == dim else 1


def packed_rule(weight: Shard, piece: Shape, dim: int, name: str) -> Shard:
    """The rule of a weight whose bytes have two values along `dim`.

    Raises: ConfigError if a rank's piece would begin within a byte.
    """
    if not isinstance(weight, DimShard | HeadShard | ExpertShard):
        raise UnsupportedError(
            f"{name} is cut for ranks by {type(weight).__name__}, which knows no values of 4 bits; "
            "add it to modules_to_not_convert"
        )
    if weight.dim != dim:
        return weight
    if isinstance(weight, HeadShard):
        size, full = weight.head_dim, weight.head_dim
        halved: Shard = replace(weight, head_dim=full // 2)
    else:
        size, full = piece[dim] // parts_along(weight, dim), weight.full_size
        halved = replace(weight, full_size=full // 2)
    if size % 2 or full % 2:
        raise ConfigError(
            f"{name} has {full} input features, of which each rank would have {size}: an odd "
            "number, and two of them share a byte; lower tp_degree, or add the layer to "
            "modules_to_not_convert"
        )
    return halved


@lru_cache(maxsize=1024)
def _local_unit(weight: Any, piece: Shape, dim: int, unit: int) -> int:
    unit = min(unit, weight.full_shape(piece)[dim])
    edges = [unit]
    for rank in range(_num_ranks(weight, piece)):
        places = _places(weight, piece, dim, unit, rank)
        edges += (torch.nonzero(places.diff()).flatten() + 1).tolist()
    return math.gcd(*edges)


@lru_cache(maxsize=1024)
def _places(weight: Any, piece: Shape, dim: int, unit: int, rank: int) -> Tensor:
    """The block of every entry of a rank's piece along `dim`, from 1 on; 0 = padding."""
    full, parts = weight.full_shape(piece), parts_along(weight, dim)
    blocks = num_blocks(full[dim] // parts, unit)
    numbers = torch.arange(full[dim] // parts) // unit
    numbers = torch.cat([numbers + 1 + part * blocks for part in range(parts)])
    # The other dimensions are kept only where the rule reads them.
    kept = {dim, 0 if isinstance(weight, ExpertShard) else dim, getattr(weight, "dim", dim)}
    small = tuple(size if d in kept else 1 for d, size in enumerate(full))
    local = tuple(size if d in kept else 1 for d, size in enumerate(piece))
    laid = numbers.view([-1 if d == dim else 1 for d in range(len(full))]).expand(small)
    cut: Tensor = weight.cut(laid, rank, local)
    return cut.movedim(dim, 0).flatten(1).amax(1)


def _num_ranks(weight: Shard, piece: Shape) -> int:
    if isinstance(weight, HeadShard):
        return len(weight.heads)
    if isinstance(weight, ExpertShard):
        return weight.layout.tp_degree * weight.layout.ep_degree
    return max(-(-whole // own) for whole, own in zip(weight.full_shape(piece), piece, strict=True))

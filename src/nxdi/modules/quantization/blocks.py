"""Weights in blocks that have one scale each: what is stored, and what it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nxdi.config.quantization import Block, WeightQuantization
from nxdi.modules.quantization.clipping import least_squares
from nxdi.modules.quantization.storage import Scales, Values, scales_of, values_of


@dataclass(frozen=True)
class BlockFormat:
    """How one weight is stored: weight = values * the scale of their block.

    Shapes: weight [N, K] or, of all experts, [E, K, N]; scale: along each dimension the number of
    blocks, of which the last may be smaller. bound: the largest value that is stored.
    packed_dim: K, along which bytes may hold two values.
    """

    values: Values
    scales: Scales
    block: Block
    bound: float
    packed_dim: int

    def widen(self, stored: Tensor, scale: Tensor) -> Tensor:
        """The weight, float32."""
        values = self.values.widen(stored, self.packed_dim)
        return values * spread(self.scales.widen(scale), self.block, tuple(values.shape))

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A weight as it is stored, and its scales.

        Integers of one row have the scale of least squared error, which may cut off the largest.
        """
        wide = weight.float()
        scale = self.scales.for_largest(_largest(wide.abs(), self.block), self.bound)
        if self.values.are_integers and wide.dim() == 2 and self.block[0] == 1:
            scale = _least_squares_in_rows(wide, scale, self.block[1], self.bound)
        units = spread(self.scales.widen(scale), self.block, tuple(wide.shape))
        stored = (wide / units).clamp(-self.bound, self.bound)
        return self.values.narrow(stored, self.packed_dim), scale


def format_of(scheme: WeightQuantization, num_dims: int) -> BlockFormat:
    """How a scheme stores a weight of 2 dimensions, or of 3: that of all experts."""
    block = scheme.block_of(num_dims)
    return BlockFormat(values_of(scheme), scales_of(scheme), block, scheme.bound, packed_dim=1)


def quantize(
    weight: Tensor, scheme: WeightQuantization, parts: int = 1, dim: int = 0
) -> tuple[Tensor, Tensor]:
    """The weight of a checkpoint in few bits, and its scales; rounds to nearest, ties to even.

    Shapes: as those of `BlockFormat`.
    parts: how many weights stand one after the other along `dim`; no block has values of two.
    """
    found = format_of(scheme, weight.dim())
    if found.block[dim] is None:
        return found.quantize(weight)
    pieces = [found.quantize(part) for part in weight.chunk(parts, dim)]
    stored, scales = zip(*pieces, strict=True)
    return torch.cat(stored, dim), torch.cat(scales, dim)


def dequantize(
    stored: Tensor, scale: Tensor, scheme: WeightQuantization, parts: int = 1, dim: int = 0
) -> Tensor:
    """What a quantized weight stands for, in float32; `parts` as in `quantize`."""
    found = format_of(scheme, stored.dim())
    if found.block[dim] is None:
        return found.widen(stored, scale)
    pairs = zip(stored.chunk(parts, dim), scale.chunk(parts, dim), strict=True)
    return torch.cat([found.widen(*pair) for pair in pairs], dim)


def spread(scale: Tensor, block: Block, shape: tuple[int, ...]) -> Tensor:
    """One scale for each value, or 1 along a dimension where all have the same."""
    for dim, (unit, size) in enumerate(zip(block, shape, strict=True)):
        if unit is None or unit == 1:
            continue
        copies = [-1] * (scale.dim() + 1)
        copies[dim + 1] = min(unit, size)  # a block may be larger than the weight
        scale = scale.unsqueeze(dim + 1).expand(copies).flatten(dim, dim + 1).narrow(dim, 0, size)
    return scale


def num_blocks(size: int, unit: int | None, parts: int = 1) -> int:
    """Scales along a dimension of `size`, made of equal parts."""
    return 1 if unit is None else parts * -(-(size // parts) // unit)


def _least_squares_in_rows(wide: Tensor, scale: Tensor, group: int | None, bound: float) -> Tensor:
    """wide [N, K], scale [N, groups] -> better scales of the same shape."""
    size = wide.shape[1] if group is None else group
    groups = F.pad(wide, (0, -wide.shape[1] % size)).unflatten(1, (-1, size))
    return least_squares(groups, scale.unsqueeze(-1), bound).squeeze(-1)


def _largest(sizes: Tensor, block: Block) -> Tensor:
    for dim, unit in enumerate(block):
        if unit is None:
            sizes = sizes.amax(dim, keepdim=True)
        elif unit > 1:
            unit = min(unit, sizes.shape[dim])
            padding = [0, 0] * (sizes.dim() - 1 - dim) + [0, -sizes.shape[dim] % unit]
            sizes = F.pad(sizes, padding).unflatten(dim, (-1, unit)).amax(dim + 1)
    return sizes

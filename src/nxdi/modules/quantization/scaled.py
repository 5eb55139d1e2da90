"""The formats of layers with quantized weights: how those are multiplied and looked up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nxdi.kernels.ops import Int4Call
from nxdi.kernels.reference.int4 import INT4_LINEAR
from nxdi.kernels.registry import choose
from nxdi.modules.quantization.blocks import BlockFormat
from nxdi.modules.quantization.storage import Int4


@dataclass(frozen=True)
class BlockWeight:
    """`layer.weight` and `layer.scale` in blocks; the weight is widened wherever it is used."""

    stored: BlockFormat
    dtype: torch.dtype  # of what comes out

    def multiply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        weight = self.stored.widen(*_stored(layer)).to(x.dtype)
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))

    def look_up(self, layer: nn.Module, ids: Tensor) -> Tensor:
        weight, scale = _stored(layer)
        rows, columns = self.stored.block
        row = replace(self.stored, block=(1, columns))
        if rows is None:
            found = scale.expand(ids.numel(), -1)
        else:
            found = F.embedding(torch.div(ids, rows, rounding_mode="floor").flatten(), scale)
        wide = row.widen(F.embedding(ids.flatten(), weight), found)
        return wide.to(self.dtype).view(*ids.shape, -1)


@dataclass(frozen=True)
class ScaledWeight(BlockWeight):
    """One scale for each row, or for all: the product is scaled, not the weight.

    So a kernel can read the weight in its 8 bits.
    """

    def multiply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        weight, scale = _stored(layer)
        y = F.linear(x, weight.to(x.dtype)) * scale.view(-1).to(x.dtype)
        return y if bias is None else y + bias.to(x.dtype)


@dataclass(frozen=True)
class Int4Weight(BlockWeight):
    """Integers of 4 bits with a scale for each group of columns, which a kernel can read."""

    def multiply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        group_size = self.stored.block[1]
        assert group_size is not None
        call = Int4Call(x.dtype, group_size)
        y: Tensor = choose(INT4_LINEAR, call).run(x, *_stored(layer), call)
        return y if bias is None else y + bias.to(x.dtype)


@dataclass(frozen=True)
class BlockExperts:
    """The weights of all experts in blocks; those that are taken are widened.

    stored: of each weight, by its name; its scales have the same name and "_scale".
    """

    stored: Mapping[str, BlockFormat]

    def take(self, experts: nn.Module, name: str, which: Tensor | None, like: Tensor) -> Tensor:
        weight, scale = getattr(experts, name), getattr(experts, f"{name}_scale")
        if which is not None:
            weight = weight[which]
            scale = scale if scale.shape[0] == 1 else scale[which]
        return self.stored[name].widen(weight, scale).to(like.dtype)


def make_weight_format(stored: BlockFormat, dtype: torch.dtype) -> BlockWeight:
    """The format of a linear or embedding layer."""
    rows, columns = stored.block
    if stored.values == Int4() and rows == 1 and columns is not None:
        return Int4Weight(stored, dtype)
    is_by_row = columns is None and stored.values.per_byte == 1
    return (ScaledWeight if is_by_row and rows in (None, 1) else BlockWeight)(stored, dtype)


def _stored(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return layer.weight, layer.scale  # type: ignore[return-value]  # parameters

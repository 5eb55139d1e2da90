"""Linear and embedding layers built with per-rank shapes, named as in neuronx_distributed.

Each layer knows how its weights are cut (`sharding.Shard`) and which collective completes its
result. The arithmetic is plain `F.linear`: a backend replaces it in the traced graph with its own
kernel.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nxdi.errors import ConfigError, UnsupportedError
from nxdi.parallel_layers import mappings
from nxdi.parallel_layers.parallel_state import ProcessGroup, get_tensor_model_parallel_group
from nxdi.parallel_layers.sharding import DimShard, Shard, TurnedShard, set_shard, shard_of


class WeightFormat(Protocol):
    """How a linear layer's weight is stored, and so how it is multiplied."""

    def multiply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias."""
        ...


class TableFormat(Protocol):
    """How an embedding's weight is stored, and so how it is looked up."""

    def look_up(self, layer: nn.Module, ids: Tensor) -> Tensor:
        """The rows of the weight with these numbers."""
        ...


class PlainWeight:
    """`layer.weight` is the weight."""

    def multiply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, layer.weight, bias)  # type: ignore[arg-type]  # a parameter

    def look_up(self, layer: nn.Module, ids: Tensor) -> Tensor:
        return F.embedding(ids, layer.weight)  # type: ignore[arg-type]  # a parameter


class TurnedWeight:
    """`layer.weight` is the weight transposed, [input, output]: as kernels of a device read it."""

    def multiply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, layer.weight.T, bias)  # type: ignore[arg-type]  # a parameter


class BaseParallelLinear(nn.Module):
    """Marker base of the parallel linear layers; ports subclass it for layers of their own."""

    weight: Tensor
    weight_format: WeightFormat = PlainWeight()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias in the dtype of `x`; 16-bit weights are widened on the fly."""
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def turn_weight(layer: BaseParallelLinear) -> None:
    """Keep a layer's weight as [input, output], which is yet to be loaded; checkpoints stay."""
    old = layer.weight
    shard = shard_of(old)
    assert shard is not None, "the checkpoint of a turned weight would have to be turned as well"
    columns, rows = old.shape
    turned = _parameter(rows, columns, dtype=old.dtype, shard=TurnedShard(shard))
    layer.weight, layer.weight_format = turned, TurnedWeight()


def unread_reason(dtype: torch.dtype, *layers: BaseParallelLinear) -> str | None:
    """Why a kernel cannot read the weights of layers that get activations of `dtype`, or None."""
    for layer in layers:
        if not isinstance(layer.weight_format, TurnedWeight):
            return f"weights are stored as {type(layer.weight_format).__name__}, not TurnedWeight"
        if layer.weight.dtype != dtype:
            return f"activations are {dtype}, weights {layer.weight.dtype}"
    return None


def _parameter(*shape: int, dtype: torch.dtype, shard: Shard | None) -> nn.Parameter:
    parameter = nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)
    if shard is not None:
        set_shard(parameter, shard)
    return parameter


def _pieces(size: int, ranks: int, pad: bool, what: str) -> int:
    """Size of one rank's piece, rounded up when padding is allowed."""
    if size % ranks and not pad:
        raise ConfigError(
            f"{what}={size} is not divisible by tp_degree={ranks}; pass pad=True to pad it with "
            "zeros"
        )
    return -(-size // ranks)


class ColumnParallelLinear(BaseParallelLinear):
    """y = x W^T + b with the rows of W (output features) spread over ranks.

    Shapes: x [..., input_size] -> [..., output_size / tp], or [..., output_size] with
    `gather_output`. `shard` overrides the rule that cuts the output dimension (attention heads use
    it).
    """

    def __init__(  # noqa: PLR0913  NxD's keywords
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        gather_output: bool = True,
        dtype: torch.dtype = torch.float32,
        pad: bool = False,
        sequence_parallel_enabled: bool = False,
        sequence_dimension: int = 1,
        tensor_model_parallel_group: ProcessGroup | None = None,
        shard: Shard | None = None,
        **unsupported: Any,
    ) -> None:
        super().__init__()
        _refuse(type(self), unsupported)
        self.group = tensor_model_parallel_group or get_tensor_model_parallel_group()
        self.input_size, self.output_size = input_size, output_size
        self.gather_output = gather_output
        self.sequence_dimension = sequence_dimension if sequence_parallel_enabled else None
        local = _pieces(output_size, self.group.size(), pad, "output_size")
        rule = shard or DimShard(0, output_size)
        self.weight = _parameter(local, input_size, dtype=dtype, shard=rule)
        self.bias = _parameter(local, dtype=dtype, shard=rule) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.sequence_dimension is not None:
            x = mappings.gather_from_sequence_parallel_region(
                x, self.sequence_dimension, self.group
            )
        y = self.weight_format.multiply(self, x, self.bias)
        if self.gather_output:
            y = mappings.gather_from_tensor_model_parallel_region_with_dim(y, -1, self.group)
            y = y[..., : self.output_size]
        return y


class RowParallelLinear(BaseParallelLinear):
    """y = x W^T + b with the columns of W (input features) spread over ranks, then summed.

    Shapes: x [..., input_size / tp] -> [..., output_size]; with `sequence_parallel_enabled` each
    rank keeps its piece of `sequence_dimension`. reduce_output=False leaves the sum over ranks to
    the caller, who adds what else is to be summed; there is no bias then.
    """

    def __init__(  # noqa: PLR0913  NxD's keywords
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        input_is_parallel: bool = False,
        dtype: torch.dtype = torch.float32,
        pad: bool = False,
        sequence_parallel_enabled: bool = False,
        sequence_dimension: int = 1,
        tensor_model_parallel_group: ProcessGroup | None = None,
        reduce_output: bool = True,
        shard: Shard | None = None,
        **unsupported: Any,
    ) -> None:
        super().__init__()
        _refuse(type(self), unsupported)
        self.group = tensor_model_parallel_group or get_tensor_model_parallel_group()
        if bias and not reduce_output:
            raise ConfigError(
                "RowParallelLinear(reduce_output=False) would add its bias once per rank; pass "
                "bias=False and add it after the sum"
            )
        self.reduce_output = reduce_output
        if not input_is_parallel and self.group.size() > 1:
            raise UnsupportedError(
                "RowParallelLinear(input_is_parallel=False) would scatter its input by rank; "
                "feed it the output of a ColumnParallelLinear(gather_output=False) and pass "
                "input_is_parallel=True"
            )
        self.input_size, self.output_size = input_size, output_size
        self.sequence_dimension = sequence_dimension if sequence_parallel_enabled else None
        local = _pieces(input_size, self.group.size(), pad, "input_size")
        self.weight = _parameter(
            output_size, local, dtype=dtype, shard=shard or DimShard(1, input_size)
        )
        self.bias = _parameter(output_size, dtype=dtype, shard=None) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.group.size() == 1:
            return self.weight_format.multiply(self, x, self.bias)
        return self.complete(self.weight_format.multiply(self, x))

    def complete(self, y: Tensor) -> Tensor:
        """The result, from what this rank's part of the weight gave."""
        if not self.reduce_output:
            return y
        if self.sequence_dimension is None:
            y = mappings.reduce_from_tensor_model_parallel_region(y, self.group)
        else:
            y = mappings.reduce_scatter_to_sequence_parallel_region(
                y, self.sequence_dimension, self.group
            )
        return y if self.bias is None else y + self.bias.to(y.dtype)


class ReplicatedLinear(BaseParallelLinear):
    """y = x W^T + b, all of it on every rank: for results that all of them need whole.

    Shapes: x [..., input_size] -> [..., output_size].
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.weight = _parameter(output_size, input_size, dtype=dtype, shard=None)
        self.bias = _parameter(output_size, dtype=dtype, shard=None) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self.weight_format.multiply(self, x, self.bias)


class SPMDRank(nn.Module):
    """The rank as a weight, int32 [1]: one traced program serves all ranks.

    Never branch on its value in Python.
    """

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self.rank = nn.Parameter(torch.empty(1, dtype=torch.int32), requires_grad=False)
        set_shard(self.rank, RankShard(world_size))

    def get_rank(self) -> Tensor:
        return self.rank


class RankShard:
    """Rule of `SPMDRank`: rank r gets the value r. The checkpoint holds no such tensor.

    Where one of several ranks has the module of a single one, it gets 0.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size

    def full_shape(self, local: tuple[int, ...]) -> tuple[int, ...]:
        return (self.world_size,)

    def cut(self, full: Tensor, rank: int, local: tuple[int, ...]) -> Tensor:
        return torch.tensor([rank % self.world_size], dtype=torch.int32)


class ParallelEmbedding(nn.Module):
    """Token embedding, sharded over the vocabulary (default) or over the hidden size.

    Shapes: ids int [B, S] -> [B, S, embedding_dim]; [B, S / tp, embedding_dim] with
    `sequence_parallel_enabled`.
    """

    weight_format: TableFormat = PlainWeight()

    def __init__(  # noqa: PLR0913  NxD's keywords
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.float32,
        shard_across_embedding: bool = False,
        pad: bool = False,
        sequence_parallel_enabled: bool = False,
        sequence_dimension: int = 1,
        tensor_model_parallel_group: ProcessGroup | None = None,
        use_spmd_rank: bool = True,
        **unsupported: Any,
    ) -> None:
        super().__init__()
        _refuse(type(self), unsupported)
        self.group = tensor_model_parallel_group or get_tensor_model_parallel_group()
        self.num_embeddings, self.embedding_dim, self.padding_idx = (
            num_embeddings,
            embedding_dim,
            padding_idx,
        )
        self.sequence_dimension = sequence_dimension if sequence_parallel_enabled else None
        ranks = self.group.size()
        self.shard_across_embedding = shard_across_embedding or ranks == 1
        if self.shard_across_embedding:
            local = _pieces(embedding_dim, ranks, pad, "embedding_dim")
            self.weight = _parameter(
                num_embeddings, local, dtype=dtype, shard=DimShard(1, embedding_dim)
            )
        else:
            local = _pieces(num_embeddings, ranks, pad, "num_embeddings")
            self.weight = _parameter(
                local, embedding_dim, dtype=dtype, shard=DimShard(0, num_embeddings)
            )
            self.rank_util = SPMDRank(ranks)

    def forward(self, ids: Tensor) -> Tensor:
        if self.shard_across_embedding:
            return self._complete_features(self.weight_format.look_up(self, ids))
        return self._complete_vocabulary(ids)

    def _complete_features(self, x: Tensor) -> Tensor:
        if self.sequence_dimension is not None:
            x = mappings.all_to_all_in_tensor_model_parallel_region(
                x, self.sequence_dimension, -1, self.group
            )
        else:
            x = mappings.gather_from_tensor_model_parallel_region_with_dim(x, -1, self.group)
        return x[..., : self.embedding_dim]

    def _complete_vocabulary(self, ids: Tensor) -> Tensor:
        rows = self.weight.shape[0]
        local = ids - self.rank_util.get_rank() * rows
        mine = (local >= 0) & (local < rows)
        x = self.weight_format.look_up(self, torch.where(mine, local, 0)) * mine.unsqueeze(-1)
        if self.sequence_dimension is not None:
            return mappings.reduce_scatter_to_sequence_parallel_region(
                x, self.sequence_dimension, self.group
            )
        return mappings.reduce_from_tensor_model_parallel_region(x, self.group)


# NxD's further keywords, with the values that mean what is done anyway.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stride": (1,),
    "rank_ordering": (None,),
    "keep_padded_output": (False,),
    "pad_alignment_size_per_rank": (1,),
    "reduce_dtype": (None, torch.float32),
    "skip_bias_add": (False,),
    "keep_master_weight": (False, True),
    "device": (None,),
    "init_method": (None,),
}


def _refuse(cls: type, given: dict[str, Any]) -> None:
    unsupported = {name for name, value in given.items() if value not in _NEUTRAL.get(name, ())}
    if unsupported:
        raise UnsupportedError(
            f"{cls.__name__} does not take {sorted(unsupported)}; remove them from the call"
        )

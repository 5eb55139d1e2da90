"""Normalisation of activations: by root mean square, and by mean and variance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.kernels.ops import NormCall
from nxdi.kernels.reference.norm import RMS_NORM
from nxdi.kernels.registry import choose
from nxdi.parallel_layers.mappings import reduce_from_tensor_model_parallel_region
from nxdi.parallel_layers.parallel_state import get_tensor_model_parallel_group
from nxdi.parallel_layers.sharding import HeadShard, set_shard


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32 whatever the dtype of x.

    Shapes: x [..., hidden_size] -> same.  Source: arXiv:1910.07467.
    """

    def __init__(
        self, hidden_size: int, eps: float = 1e-6, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, dtype=dtype), requires_grad=False)
        self.variance_epsilon = eps

    def forward(self, x: Tensor) -> Tensor:
        hidden_size = x.shape[-1]
        call = NormCall(x.numel() // hidden_size, hidden_size, x.dtype)
        kernel = choose(RMS_NORM, call)
        y: Tensor = kernel.run(x, self.gain(), self.variance_epsilon, call)
        return y

    def gain(self) -> Tensor:
        """What the normalised values are multiplied by, float32 [hidden_size]."""
        return self.weight.float()


def hidden_norm(config: InferenceConfig) -> RMSNorm:
    """One over the hidden size, as most models have it."""
    return RMSNorm(config.hidden_size, config.rms_norm_eps, config.neuron_config.torch_dtype)


class UnweightedRMSNorm(nn.Module):
    """x / rms(x), in float32 whatever the dtype of x.

    Shapes: x [..., D] -> same.
    """

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / deviation * weight, plus a bias if there is one, in float32 whatever x is.

    Shapes: x [..., hidden_size] -> same.  Source: arXiv:1607.06450.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dtype: torch.dtype = torch.float32,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, dtype=dtype), requires_grad=False)
        self.bias = (
            nn.Parameter(torch.empty(hidden_size, dtype=dtype), requires_grad=False)
            if bias
            else None
        )
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        normed = F.layer_norm(x.float(), self.weight.shape, self.weight.float(), bias, self.eps)
        return normed.to(x.dtype)


class UnitOffsetRMSNorm(RMSNorm):
    """RMSNorm whose weight is stored as its distance from one, as Gemma's checkpoints have it."""

    def gain(self) -> Tensor:
        return 1 + self.weight.float()


class AllHeadsRMSNorm(nn.Module):
    """RMSNorm over all heads of a token at once, spread over ranks.

    Shapes: x [B, S, N, D] of this rank's heads -> same. heads: the heads of every rank, as in
    `HeadLayout`. A head that several ranks hold counts as often, in the sum and in the number of
    values, which is right because all heads have equally many copies; padding adds nothing.
    """

    def __init__(
        self,
        heads: tuple[tuple[int, ...], ...],
        num_heads: int,
        head_dim: int,
        eps: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.group = get_tensor_model_parallel_group()
        self.num_values = sum(head >= 0 for rank in heads for head in rank) * head_dim
        assert self.num_values % (num_heads * head_dim) == 0, "heads have unequally many copies"
        self.weight = nn.Parameter(
            torch.empty(len(heads[0]) * head_dim, dtype=dtype), requires_grad=False
        )
        set_shard(self.weight, HeadShard(0, heads, head_dim, num_heads))
        self.variance_epsilon = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        squares = wide.pow(2).sum(dim=(-2, -1), keepdim=True)
        total = reduce_from_tensor_model_parallel_region(squares, self.group)
        scale = torch.rsqrt(total / self.num_values + self.variance_epsilon)
        return (self.weight.float().view(x.shape[-2:]) * (wide * scale)).to(x.dtype)

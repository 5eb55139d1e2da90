"""Grouped-query attention in six steps: project, split_heads, position, append, attend, merge.

Variation is held by objects chosen in the constructor (mask, rotary embedding, q/k norm, sinks,
cache layout); forward asks nothing again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.errors import ConfigError
from nxdi.kernels.masks import Causal, MaskPolicy, SlidingWindow
from nxdi.modules.attention.attend import Attend
from nxdi.modules.context import LayerContext
from nxdi.modules.kvcache import ContiguousCache, KVCacheLayout, WindowCache
from nxdi.modules.rope import RotaryEmbedding, apply_rotary
from nxdi.modules.sequence import SequenceGather
from nxdi.parallel_layers.layers import ColumnParallelLinear, RowParallelLinear
from nxdi.parallel_layers.parallel_state import get_tensor_model_parallel_size
from nxdi.parallel_layers.sharding import HeadShard, plan_heads, set_shard


@dataclass(frozen=True)
class AttentionOutput:
    """Result of an attention module.

    Unpacks to four, as NxDI's does: the cache travels in the context instead.
    """

    hidden_states: Tensor
    present_key_value: tuple[Tensor, Tensor] | None = None
    cos_cache: Tensor | None = None
    sin_cache: Tensor | None = None

    def __iter__(self) -> Iterator[object]:
        return iter((self.hidden_states, self.present_key_value, self.cos_cache, self.sin_cache))


class NeuronAttentionBase(nn.Module):
    """Grouped-query attention over this rank's heads.

    Shapes: hidden_states [B, S, hidden_size] -> AttentionOutput of the same (S / tp with sequence
    parallelism). `num_heads` and `num_key_value_heads` are per rank after construction; head counts
    that do not divide are padded. `scale` multiplies QK^T (default head_dim ** -0.5);
    `softmax_scale` is NxDI's spelling, a divisor. `qk_norm` maps (q, k) [B, N, S, D] to the same;
    `num_sinks` is 0 or 1 learned extra logit per head.
    Raises: ConfigError for contradictory keywords.
    """

    def __init__(  # noqa: PLR0913  NxDI's keywords
        self,
        config: InferenceConfig,
        *,
        hidden_size: int,
        num_attention_heads: int,
        num_key_value_heads: int,
        head_dim: int | None = None,
        rotary_emb: RotaryEmbedding | None = None,
        qkv_bias: bool = False,
        o_bias: bool = False,
        sliding_window: int | None = None,
        qk_norm: nn.Module | None = None,
        scale: float | None = None,
        softmax_scale: float | None = None,
        softcap: float | None = None,
        has_sinks: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.neuron_config = config, config.neuron_config
        self.hidden_size = hidden_size
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.tp_degree = get_tensor_model_parallel_size()
        self.layout = plan_heads(num_attention_heads, num_key_value_heads, self.tp_degree)
        self.num_heads, self.num_key_value_heads = (
            self.layout.num_q_per_rank,
            self.layout.num_kv_per_rank,
        )
        self.rotary_emb, self.qk_norm = rotary_emb, qk_norm
        self.attend = Attend(_mask(sliding_window), self._scale(scale, softmax_scale), softcap)
        self.cache_layout = self._cache_layout(sliding_window)
        self.gather = SequenceGather(self.neuron_config.sequence_parallel_enabled)
        q_shard = HeadShard(0, self.layout.q, self.head_dim, num_attention_heads)
        kv_shard = HeadShard(0, self.layout.kv, self.head_dim, num_key_value_heads)
        self.q_proj = self._column(q_shard, self.num_heads, qkv_bias)
        self.k_proj = self._column(kv_shard, self.num_key_value_heads, qkv_bias)
        self.v_proj = self._column(kv_shard, self.num_key_value_heads, qkv_bias)
        self.o_proj = RowParallelLinear(
            self.tp_degree * self.num_heads * self.head_dim,
            hidden_size,
            o_bias,
            input_is_parallel=True,
            dtype=self.neuron_config.torch_dtype,
            sequence_parallel_enabled=self.neuron_config.sequence_parallel_enabled,
            shard=HeadShard(1, self.layout.q, self.head_dim, num_attention_heads),
        )
        self.sinks = self._sinks(num_attention_heads) if has_sinks else None

    def _column(self, shard: HeadShard, heads_per_rank: int, bias: bool) -> ColumnParallelLinear:
        return ColumnParallelLinear(
            self.hidden_size,
            self.tp_degree * heads_per_rank * self.head_dim,
            bias,
            gather_output=False,
            dtype=self.neuron_config.torch_dtype,
            shard=shard,
        )

    def _sinks(self, num_attention_heads: int) -> nn.Parameter:
        sinks = nn.Parameter(
            torch.empty(self.num_heads, dtype=self.neuron_config.torch_dtype), requires_grad=False
        )
        set_shard(sinks, HeadShard(0, self.layout.q, 1, num_attention_heads))
        return sinks

    def _scale(self, scale: float | None, softmax_scale: float | None) -> float:
        if scale is not None and softmax_scale is not None:
            raise ConfigError(
                f"give scale={scale} (multiplies QK^T) or softmax_scale={softmax_scale} (divides "
                "it), not both"
            )
        if softmax_scale is not None:
            return 1.0 / softmax_scale
        return scale if scale is not None else 1.0 / math.sqrt(self.head_dim)

    def _cache_layout(self, sliding_window: int | None) -> KVCacheLayout:
        max_len = self.neuron_config.max_length
        if sliding_window is not None and sliding_window < max_len:
            return WindowCache(self.num_key_value_heads, sliding_window, self.head_dim)
        return ContiguousCache(self.num_key_value_heads, max_len, self.head_dim)

    def forward(self, hidden_states: Tensor, *, ctx: LayerContext) -> AttentionOutput:
        q, k, v = self.split_heads(*self.project(self.gather(hidden_states)))
        q, k = self.position(q, k, ctx)
        attended = ctx.append(self.cache_layout, k, v)
        out = self.attend(q, attended, self.sinks, ctx)
        return AttentionOutput(self.merge_and_project(out))

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, S, hidden] -> q [B, S, N_q * D], k and v [B, S, N_kv * D] of this rank."""
        return self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)

    def split_heads(self, *projections: Tensor) -> tuple[Tensor, ...]:
        """Each [B, S, N * D] -> [B, N, S, D]."""
        return tuple(x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in projections)

    def position(self, q: Tensor, k: Tensor, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        """Normalise heads and turn them by their positions. [B, N, S, D] -> same."""
        if self.qk_norm is not None:
            q, k = self.qk_norm(q, k)
        if self.rotary_emb is None:
            return q, k
        cos, sin = self.rotary_emb(q, ctx.position_ids)
        return apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)

    def merge_and_project(self, out: Tensor) -> Tensor:
        """[B, N, S, D] -> [B, S, hidden]."""
        projected: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return projected


def _mask(sliding_window: int | None) -> MaskPolicy:
    return Causal() if sliding_window is None else SlidingWindow(sliding_window)

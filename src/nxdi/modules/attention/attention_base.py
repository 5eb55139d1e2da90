"""Grouped-query attention in steps: qkv_proj, split_heads, rotate, append, attend, o_proj.

Variation is held by objects chosen in the constructor (mask, rotary embedding, head norms, sinks,
cache layout); forward asks nothing again. The class takes the calls that layers written for NxDI
make, and calls the hooks that such models override: `prep_qkv_tensors`, `apply_rotary_embedding`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nxdi.absent import explain_absent_names
from nxdi.config import InferenceConfig
from nxdi.errors import ConfigError
from nxdi.kernels.masks import choose_mask
from nxdi.modules.attention.attend import Attend
from nxdi.modules.attention.nxdi_keywords import NxdiKeywords
from nxdi.modules.attention.projections import OutputProjection, QKVProjection, rename_projections
from nxdi.modules.attention.utils import apply_rotary_polar_compatible, move_heads_front
from nxdi.modules.context import LayerContext, running_context
from nxdi.modules.kvcache import choose_layout
from nxdi.modules.kvcache.codec import make_codec, rename_scales
from nxdi.modules.rope import polar_frequencies, turn_heads
from nxdi.parallel_layers.parallel_state import get_tensor_model_parallel_group
from nxdi.parallel_layers.sharding import HeadShard, plan_heads, set_shard


@dataclass(frozen=True)
class AttentionOutput:
    """Result of an attention module.

    Unpacks to four, as NxDI's does. The cache travels in the context; `present_key_value` holds
    the new keys and values [B, N, S, D] only.
    """

    hidden_states: Tensor
    present_key_value: tuple[Tensor, Tensor] | None = None
    cos_cache: Tensor | None = None
    sin_cache: Tensor | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.hidden_states, self.present_key_value, self.cos_cache, self.sin_cache))


class NeuronAttentionBase(nn.Module):
    """Grouped-query attention over this rank's heads.

    Shapes: hidden_states [B, S, hidden_size] -> AttentionOutput of the same (S / tp with sequence
    parallelism). `num_heads` and `num_key_value_heads` are per rank after construction; head counts
    that do not divide are padded.

    input_size: elements of hidden_states, where they are not the `hidden_size` of the result.
    rotary_emb: (x, position_ids) -> (cos, sin), or None for no rotary positions.
    sliding_window, attention_chunk_size: tokens that a query sees, the last ones or those of its
    own chunk; the cache then keeps no more.
    q_layernorm, k_layernorm: norms of the heads [B, S, N, D], before the rotary embedding.
    scale: multiplies QK^T (default head_dim ** -0.5); `softmax_scale` is NxDI's spelling, a
    divisor.
    has_sinks: one learned extra logit per head.
    nxdi: NxDI's other keywords, see `nxdi_keywords`.
    Raises: ConfigError for contradictory or unknown keywords.
    """

    def __init__(  # noqa: PLR0913  NxDI's keywords
        self,
        config: InferenceConfig,
        *,
        hidden_size: int,
        num_attention_heads: int,
        num_key_value_heads: int,
        head_dim: int | None = None,
        input_size: int | None = None,
        rotary_emb: nn.Module | None = None,
        qkv_bias: bool = False,
        o_bias: bool = False,
        sliding_window: int | None = None,
        attention_chunk_size: int | None = None,
        q_layernorm: nn.Module | None = None,
        k_layernorm: nn.Module | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        has_sinks: bool = False,
        **nxdi: Any,
    ) -> None:
        super().__init__()
        given = NxdiKeywords.read(nxdi, config.neuron_config)
        self.config, self.neuron_config = config, config.neuron_config
        self.hidden_size, self.rotary_emb = hidden_size, rotary_emb
        self.input_size = input_size or hidden_size
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.q_layernorm, self.k_layernorm = q_layernorm, k_layernorm
        self.post_transpose_layernorm = given.post_transpose_layernorm
        self.rope_theta, self.use_scaled_rope = given.rope_theta, given.use_scaled_rope
        self.rms_norm_eps, self.sliding_window = given.rms_norm_eps, sliding_window
        self.attention_chunk_size = attention_chunk_size
        self._init_heads(num_attention_heads, num_key_value_heads)
        mask = choose_mask(sliding_window, attention_chunk_size, self.neuron_config.max_length)
        self.attend = Attend(mask, self._scale(scale, given.softmax_scale), softcap)
        head_dims = self.head_dim, self.head_dim
        self.cache_layout = choose_layout(
            self.neuron_config, mask, self.num_key_value_heads, head_dims
        )
        self.kv_codec = make_codec(self.neuron_config, self.layout, head_dims)
        self._init_projections(qkv_bias, o_bias, given)
        self.sinks = self._sinks() if has_sinks or given.learned_sinks_size else None

    def _init_heads(self, num_attention_heads: int, num_key_value_heads: int) -> None:
        self.tensor_model_parallel_group = get_tensor_model_parallel_group()
        self.tp_degree = self.tensor_model_parallel_group.size()
        self.cp_degree = 1
        self.torch_dtype = self.neuron_config.torch_dtype
        self.num_attention_heads = num_attention_heads
        self.layout = plan_heads(num_attention_heads, num_key_value_heads, self.tp_degree)
        self.num_heads = self.layout.num_q_per_rank
        self.num_key_value_heads = self.layout.num_kv_per_rank
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        # Rows of q, k and v in a full checkpoint.
        q_size, kv_size = num_attention_heads * self.head_dim, num_key_value_heads * self.head_dim
        self._projection_sizes = (q_size, kv_size, kv_size)

    def _init_projections(self, qkv_bias: bool, o_bias: bool, given: NxdiKeywords) -> None:
        neuron, kv_size = self.neuron_config, self._projection_sizes[1]
        self.sequence_parallel_enabled = neuron.sequence_parallel_enabled
        self.qkv_proj_sp_enabled = self.sequence_parallel_enabled
        self.qkv_proj = QKVProjection(
            neuron,
            hidden_size=self.input_size,
            head_dim=self.head_dim,
            layout=self.layout,
            num_heads=self.num_attention_heads,
            num_key_value_heads=kv_size // self.head_dim,
            bias=qkv_bias,
            clip=given.clip_qkv,
        )
        self._o_proj_name = given.o_proj_layer_name
        self.o_proj = OutputProjection(
            self.tp_degree * self.num_heads * self.head_dim,
            self.hidden_size,
            o_bias,
            input_is_parallel=True,
            dtype=self.torch_dtype,
            sequence_parallel_enabled=self.sequence_parallel_enabled,
            shard=HeadShard(1, self.layout.q, self.head_dim, self.num_attention_heads),
        )

    def _sinks(self) -> nn.Parameter:
        sinks = nn.Parameter(
            torch.empty(self.num_heads, dtype=self.torch_dtype), requires_grad=False
        )
        set_shard(sinks, HeadShard(0, self.layout.q, 1, self.num_attention_heads))
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

    def preshard_hook(self, model_state_dict: dict[str, Tensor], prefix: str) -> None:
        """Rename this module's tensors in a full checkpoint; prefix: its path plus "weight"."""
        path = prefix.removesuffix("weight")
        rename_scales(model_state_dict, path)
        rename_projections(model_state_dict, path, self._projection_sizes, self._o_proj_name)

    def get_qkv_proj(self) -> QKVProjection:
        return self.qkv_proj

    def get_o_proj(self) -> OutputProjection:
        return self.o_proj

    def forward(  # noqa: PLR0913  NxDI's order
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_value: Any = None,
        active_mask: Tensor | None = None,
        adapter_ids: Tensor | None = None,
        cos_cache: Tensor | None = None,
        sin_cache: Tensor | None = None,
        rmsnorm: nn.Module | None = None,
        rotary_position_ids: Tensor | None = None,
        *,
        residual: Tensor | None = None,
        use_polar_compatible_rope: bool = False,
        ctx: LayerContext | None = None,
        **ignored: Any,
    ) -> AttentionOutput:
        """Attend. Masks and the cache come from `ctx`, or from the step that is running.

        position_ids, rotary_position_ids: what the rotary embedding turns by, if not the step's
        own positions. The other arguments of NxDI's call carry nothing that is not known here.
        """
        ctx = ctx if ctx is not None else running_context(self)
        positions = rotary_position_ids if rotary_position_ids is not None else position_ids
        q, k, v, cos, sin, _ = self.prep_qkv_tensors(
            positions if positions is not None else ctx.token_places,
            hidden_states,
            past_key_value,
            adapter_ids=adapter_ids,
            cos_cache=cos_cache,
            sin_cache=sin_cache,
            rmsnorm=rmsnorm,
            residual=residual,
            use_polar_compatible_rope=use_polar_compatible_rope,
        )
        attended = self.kv_codec.decode(ctx.append(self.cache_layout, *self.kv_codec.encode(k, v)))
        out = self.attend(q, attended, self.sinks, ctx)
        return AttentionOutput(self.merge_and_project(out), (k, v), cos, sin)

    def prep_qkv_tensors(  # noqa: PLR0913  NxDI's order
        self,
        position_ids: Tensor,
        hidden_states: Tensor,
        past_key_value: Any = None,
        adapter_ids: Tensor | None = None,
        cos_cache: Tensor | None = None,
        sin_cache: Tensor | None = None,
        rmsnorm: nn.Module | None = None,
        skip_rope: bool = False,
        residual: Tensor | None = None,
        use_polar_compatible_rope: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Project, split into heads, normalise, turn by position.

        Returns: q [B, N_q, S, D], k and v [B, N_kv, S, D], cos, sin, residual.
        """
        q, k, v, residual = self.get_qkv_proj()(
            hidden_states=hidden_states, rmsnorm=rmsnorm, adapter_ids=adapter_ids, residual=residual
        )
        q, k, v = self.split_heads(q, k, v)
        if not skip_rope:
            q, k, cos_cache, sin_cache = self.apply_rotary_embedding(
                q, k, v, position_ids, cos_cache, sin_cache, use_polar_compatible_rope
            )
        return q, k, v, cos_cache, sin_cache, residual

    def split_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each [B, S, N * D] -> [B, N, S, D]; q and k through their norms."""

        def split(x: Tensor, num_heads: int, norm: nn.Module | None) -> Tensor:
            batch, length = x.shape[:2]
            after = self.post_transpose_layernorm
            return move_heads_front(x, batch, length, num_heads, self.head_dim, norm, after)

        return (
            split(q, self.num_heads, self.q_layernorm),
            split(k, self.num_key_value_heads, self.k_layernorm),
            split(v, self.num_key_value_heads, None),
        )

    def apply_rotary_embedding(
        self,
        Q: Tensor,
        K: Tensor,
        V: Tensor,
        position_ids: Tensor,
        cos_cache: Tensor | None,
        sin_cache: Tensor | None,
        use_polar_compatible_rope: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Turn q and k [B, N, S, D] by their positions [B, S]; also the angles, for a next layer.

        use_polar_compatible_rope: pairs of neighbours are turned, as in Meta's own Llama.
        """
        if use_polar_compatible_rope:
            theta = self.rope_theta or 10000.0
            freqs = polar_frequencies(self.head_dim, theta, self.use_scaled_rope, position_ids)
            q, k = apply_rotary_polar_compatible(Q.transpose(1, 2), K.transpose(1, 2), freqs)
            return q.transpose(1, 2), k.transpose(1, 2), cos_cache, sin_cache
        if self.rotary_emb is None:
            return Q, K, cos_cache, sin_cache
        if cos_cache is None or sin_cache is None:
            cos_cache, sin_cache = self.rotary_emb(V, position_ids)
        q, k = turn_heads(self.rotary_emb, Q, K, cos_cache, sin_cache)
        return q, k, cos_cache, sin_cache

    def merge_and_project(self, out: Tensor) -> Tensor:
        """[B, N, S, D] -> [B, S, hidden]."""
        projected: Tensor = self.get_o_proj()(out.transpose(1, 2).flatten(2))
        return projected


explain_absent_names(__name__)

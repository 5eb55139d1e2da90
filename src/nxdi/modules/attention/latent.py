"""Multi-head latent attention: keys and values of all heads are made of one latent per token.

The cache holds that latent and the one rotary key that all heads share, and nothing per head. Ranks
share the heads; the cache is the same on each. Source: arXiv:2405.04434 section 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.errors import ConfigError
from nxdi.kernels.masks import Causal
from nxdi.modules.attention.attend import Attend
from nxdi.modules.attention.attention_base import AttentionOutput
from nxdi.modules.attention.projections import OutputProjection
from nxdi.modules.context import LayerContext
from nxdi.modules.kvcache import choose_layout
from nxdi.modules.kvcache.codec import make_codec, rename_scales
from nxdi.modules.kvcache.spec import Attended
from nxdi.modules.norm import RMSNorm
from nxdi.modules.rope import rotation_of
from nxdi.modules.sequence import SequenceGather
from nxdi.parallel_layers.layers import ColumnParallelLinear, ReplicatedLinear, linear
from nxdi.parallel_layers.parallel_state import get_tensor_model_parallel_size
from nxdi.parallel_layers.sharding import HeadLayout, HeadShard, plan_heads, set_shard
from nxdi.types import Phase

_NORM_EPS = 1e-6  # of the latents, whatever the model's other norms have


@dataclass(frozen=True)
class LatentSizes:
    """The sizes of latent attention, named as in Hugging Face's configs.

    q_lora_rank: of the queries' latent; None: queries are projected at once.
    Raises: ConfigError for a size below 1, or an odd qk_rope_head_dim.
    """

    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    def __post_init__(self) -> None:
        for field in fields(self):
            size = getattr(self, field.name)
            is_size = isinstance(size, int) and size >= 1
            if not is_size and (size is not None or field.name != "q_lora_rank"):
                raise ConfigError(f"{field.name}={size!r} must be at least 1; correct config.json")
        if self.qk_rope_head_dim % 2:
            raise ConfigError(
                f"qk_rope_head_dim={self.qk_rope_head_dim} is turned in pairs and must be even; "
                "correct config.json"
            )

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim


class LatentAttention(nn.Module):
    """Attention over this rank's heads and one cache for all.

    Shapes: hidden_states [B, S, hidden_size] -> AttentionOutput of the same (S / tp with sequence
    parallelism). Weights are named as in Hugging Face's DeepseekV3Attention.
    rotary_emb: of `qk_rope_head_dim`. scale: multiplies QK^T (default qk_head_dim ** -0.5).
    bias: of the projections to latents and of the last one.
    """

    def __init__(
        self,
        config: InferenceConfig,
        sizes: LatentSizes,
        rotary_emb: nn.Module,
        scale: float | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        neuron, dtype = config.neuron_config, config.neuron_config.torch_dtype
        hidden, ranks = config.hidden_size, get_tensor_model_parallel_size()
        self.sizes, self.rotary_emb = sizes, rotary_emb
        heads = plan_heads(sizes.num_attention_heads, sizes.num_attention_heads, ranks)
        self.num_heads = heads.num_q_per_rank
        self.gather = SequenceGather(neuron.sequence_parallel_enabled)
        rank = sizes.q_lora_rank
        self.q_a_proj = (
            nn.Identity() if rank is None else ReplicatedLinear(hidden, rank, bias, dtype)
        )
        self.q_a_layernorm = nn.Identity() if rank is None else RMSNorm(rank, _NORM_EPS, dtype)
        self.q_b_proj = ColumnParallelLinear(
            hidden if rank is None else rank,
            ranks * self.num_heads * sizes.qk_head_dim,
            bias=False,
            gather_output=False,
            dtype=dtype,
            shard=HeadShard(0, heads.q, sizes.qk_head_dim, sizes.num_attention_heads),
        )
        self.kv_a_proj_with_mqa = ReplicatedLinear(
            hidden, sizes.kv_lora_rank + sizes.qk_rope_head_dim, bias, dtype
        )
        self.kv_a_layernorm = RMSNorm(sizes.kv_lora_rank, _NORM_EPS, dtype)
        self.kv_b_proj = FromLatent(sizes, heads, dtype)
        self.o_proj = OutputProjection(
            ranks * self.num_heads * sizes.v_head_dim,
            hidden,
            bias,
            input_is_parallel=True,
            dtype=dtype,
            sequence_parallel_enabled=neuron.sequence_parallel_enabled,
            shard=HeadShard(1, heads.q, sizes.v_head_dim, sizes.num_attention_heads),
        )
        attend = Attend(Causal(), scale if scale is not None else sizes.qk_head_dim**-0.5)
        self.form = choose_form(neuron.phase, attend)
        # The key that the cache holds is the rotary one; its value is the latent.
        held = sizes.qk_rope_head_dim, sizes.kv_lora_rank
        self.cache_layout = choose_layout(neuron, attend.mask, 1, held)
        self.kv_codec = make_codec(neuron, HeadLayout(heads.q, ((0,),) * ranks), held)

    def preshard_hook(self, model_state_dict: dict[str, Tensor], prefix: str) -> None:
        """Rename this module's tensors in a full checkpoint; prefix: its path plus "weight"."""
        path = prefix.removesuffix("weight")
        rename_scales(model_state_dict, path)
        if f"{path}q_proj.weight" in model_state_dict:
            model_state_dict[f"{path}q_b_proj.weight"] = model_state_dict.pop(
                f"{path}q_proj.weight"
            )

    def forward(self, hidden_states: Tensor, *, ctx: LayerContext) -> AttentionOutput:
        """Attend. The mask and the cache come from `ctx`."""
        q, q_rotary = self.queries(hidden_states)
        latent, k_rotary = self.latents(hidden_states)
        cos, sin = self.rotary_emb(latent, ctx.token_places)
        rotate = rotation_of(self.rotary_emb)
        stored = self.kv_codec.encode(rotate(k_rotary, cos, sin), latent)
        attended = self.kv_codec.decode(ctx.append(self.cache_layout, *stored))
        out = self.form(self.kv_b_proj, q, rotate(q_rotary, cos, sin), attended, ctx)
        return AttentionOutput(self.o_proj(out.transpose(1, 2).flatten(2)))

    def queries(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S, hidden] -> without positions [B, N, S, nope], to be turned [B, N, S, rope]."""
        latent = self.gather(self.q_a_layernorm(self.q_a_proj(hidden_states)))
        q = self.q_b_proj(latent).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        size = self.sizes.qk_nope_head_dim
        return q[..., :size], q[..., size:]

    def latents(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S, hidden] -> the latent [B, 1, S, rank], the key to be turned [B, 1, S, rope]."""
        both = self.gather(self.kv_a_proj_with_mqa(hidden_states))
        rank = self.sizes.kv_lora_rank
        latent = self.kv_a_layernorm(both[..., :rank])
        return latent.unsqueeze(1), both[..., rank:].unsqueeze(1)


class FromLatent(nn.Module):
    """What makes keys and values of this rank's heads from latents: `kv_b_proj`.

    The weight has for each head the rows of its key, then those of its value. It is never
    quantized, since decode multiplies by it from the other side.
    """

    def __init__(self, sizes: LatentSizes, heads: HeadLayout, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_heads, self.key_size = heads.num_q_per_rank, sizes.qk_nope_head_dim
        rows = sizes.qk_nope_head_dim + sizes.v_head_dim
        weight = torch.empty(self.num_heads * rows, sizes.kv_lora_rank, dtype=dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)
        set_shard(self.weight, HeadShard(0, heads.q, rows, sizes.num_attention_heads))

    def expand(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 1, L, rank] -> keys [B, N, L, nope] and values [B, N, L, v_head_dim]."""
        both = linear(latent.squeeze(1), self.weight)
        both = both.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return both[..., : self.key_size], both[..., self.key_size :]

    def to_latent(self, q: Tensor) -> Tensor:
        """Queries for keys -> queries for latents. [B, N, S, nope] -> [B, N, S, rank]."""
        return q @ self._of_heads(q.dtype)[:, : self.key_size]

    def from_latent(self, out: Tensor) -> Tensor:
        """Sums of latents -> sums of values. [B, N, S, rank] -> [B, N, S, v_head_dim]."""
        return out @ self._of_heads(out.dtype)[:, self.key_size :].transpose(-1, -2)

    def _of_heads(self, dtype: torch.dtype) -> Tensor:
        return self.weight.to(dtype).view(self.num_heads, -1, self.weight.shape[1])


class Form(Protocol):
    """One of two ways to the same numbers."""

    def __call__(
        self,
        project: FromLatent,
        q: Tensor,
        q_rotary: Tensor,
        attended: Attended,
        ctx: LayerContext,
    ) -> Tensor:
        """q [B, N, S, nope] and q_rotary [B, N, S, rope] -> [B, N, S, v_head_dim].

        attended: the rotary keys and the latents, each of one head.
        """
        ...


@dataclass(frozen=True)
class Expanded:
    """Each head's keys and values are made: least arithmetic where all tokens are new."""

    attend: Attend

    def __call__(
        self,
        project: FromLatent,
        q: Tensor,
        q_rotary: Tensor,
        attended: Attended,
        ctx: LayerContext,
    ) -> Tensor:
        k_rotary, latent, positions, _ = attended
        k, v = project.expand(latent)
        # What is turned comes first: joined last, Neuron's compiler is known to lose short parts.
        q = torch.cat([q_rotary, q], dim=-1)
        k = torch.cat([k_rotary.expand(-1, k.shape[1], -1, -1), k], dim=-1)
        return self.attend(q, Attended(k, v, positions), None, ctx)


@dataclass(frozen=True)
class Absorbed:
    """Queries meet the latents themselves: least memory where many tokens are in the cache."""

    attend: Attend

    def __call__(
        self,
        project: FromLatent,
        q: Tensor,
        q_rotary: Tensor,
        attended: Attended,
        ctx: LayerContext,
    ) -> Tensor:
        out = self.attend.over_latents(project.to_latent(q), q_rotary, attended, ctx)
        return project.from_latent(out)


def choose_form(phase: Phase, attend: Attend) -> Form:
    """Only a prefill expands: it attends to no more than its own tokens."""
    return Expanded(attend) if phase is Phase.PREFILL else Absorbed(attend)

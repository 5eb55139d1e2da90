"""Small functions of attention that models written for NxDI import from here."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nxdi.absent import explain_absent_names
from nxdi.modules.rope import RotaryEmbedding as _RotaryEmbedding
from nxdi.modules.rope import plain_frequencies, polar_frequencies, rotate_half

__all__ = [
    "RotaryEmbedding",
    "apply_rotary_polar_compatible",
    "apply_rotary_pos_emb",
    "manual_softmax",
    "move_heads_front",
    "precompute_freqs_cis",
    "repeat_kv",
    "rotate_half",
]


class RotaryEmbedding(_RotaryEmbedding):
    """Plain rotary angles with NxDI's constructor.

    A subclass changes the frequencies in `get_inv_freqs`, which is called when the model is built.
    factor: divides the positions.
    """

    def __init__(
        self,
        dim: int,
        max_position_embeddings: int = 2048,
        base: float = 10000.0,
        factor: float | None = None,
    ) -> None:
        super().__init__(dim, max_position_embeddings, base, inv_freq=torch.empty(0))
        self.factor = factor

    def get_inv_freqs(self, device: torch.device | None = None) -> Tensor:
        """One frequency per pair of dimensions, float32 [dim / 2]."""
        frequencies = plain_frequencies(self.dim, self.base)
        return frequencies if self.factor is None else frequencies / self.factor

    def prepare(self) -> None:
        """Compute the frequencies, once the constructors of all subclasses have run."""
        self.inv_freq = self.get_inv_freqs()


def move_heads_front(
    tensor: Tensor,
    bsz: int,
    seq_len: int,
    num_head: int,
    head_dim: int,
    layernorm: nn.Module | None = None,
    post_transpose_layernorm: bool = False,
) -> Tensor:
    """[B, S, N * D] -> [B, N, S, D], through a norm before or after the heads move."""
    heads = tensor.view(bsz, seq_len, num_head, head_dim)
    if layernorm is None:
        return heads.transpose(1, 2)
    if post_transpose_layernorm:
        moved: Tensor = layernorm(heads.transpose(1, 2))
        return moved
    normed: Tensor = layernorm(heads)
    return normed.transpose(1, 2)


def apply_rotary_pos_emb(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None = None,
    unsqueeze_dim: int = 1,
) -> tuple[Tensor, Tensor]:
    """Turn q and k; cos and sin [B, S, D] gain a heads dimension at `unsqueeze_dim`."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin


def precompute_freqs_cis(
    dim: int,
    end: int,
    theta: float = 10000.0,
    use_scaled: bool = False,
    device: torch.device | None = None,
) -> Tensor:
    """Angles of positions 0 .. end - 1 as (cos, sin) pairs, float32 [end, dim / 2, 2]."""
    positions = torch.arange(end, dtype=torch.int32, device=device)
    return polar_frequencies(dim, theta, use_scaled, positions)


def apply_rotary_polar_compatible(
    query: Tensor, key: Tensor, freqs_cis: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn neighbours (x0, x1), (x2, x3), ... of q and k [B, S, N, D]; freqs_cis [B, S, D/2, 2]."""
    cos, sin = freqs_cis.unsqueeze(-3).unbind(-1)

    def turn(x: Tensor) -> Tensor:
        real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        pairs = (real * cos - imaginary * sin, real * sin + imaginary * cos)
        return torch.stack(pairs, dim=-1).flatten(-2).to(x.dtype)

    return turn(query), turn(key)


def repeat_kv(hidden_states: Tensor, n_rep: int) -> Tensor:
    """Each key/value head `n_rep` times in a row. [B, N, S, D] -> [B, N * n_rep, S, D]."""
    return hidden_states.repeat_interleave(n_rep, dim=1)


def manual_softmax(
    prior_scores: Tensor, active_scores: Tensor, is_speculation: bool = False
) -> tuple[Tensor, Tensor]:
    """One softmax over earlier and new keys, given and returned apart. [..., L] and [..., S]."""
    both = torch.softmax(torch.cat([prior_scores, active_scores], dim=-1).float(), dim=-1)
    prior, active = both.split([prior_scores.shape[-1], active_scores.shape[-1]], dim=-1)
    return prior, active


explain_absent_names(__name__)

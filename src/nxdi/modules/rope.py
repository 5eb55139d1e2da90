"""Rotary position embeddings: the tables, their scaling rules, and how they turn queries and keys.

Source: arXiv:2104.09864; the scaling rules are named as in Hugging Face's `rope_scaling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nxdi.errors import ConfigError


class RotaryEmbedding(nn.Module):
    """Angles of each position as (cos, sin).

    Shapes: x (only its dtype counts), position_ids int [B, S] -> two [B, S, dim], the halves
    repeated. Tables are computed in float32, as Hugging Face does.
    """

    inv_freq: Tensor

    def __init__(
        self,
        dim: int,
        max_position_embeddings: int = 2048,
        base: float = 10000.0,
        inv_freq: Tensor | None = None,
        attention_scaling: float = 1.0,
    ) -> None:
        super().__init__()
        self.dim, self.max_position_embeddings, self.base = dim, max_position_embeddings, base
        self.attention_scaling = attention_scaling
        # Real even when the model is built on the meta device: it is derived, not loaded.
        self.register_buffer(
            "inv_freq", _plain(dim, base) if inv_freq is None else inv_freq, persistent=False
        )

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids.unsqueeze(-1).float() * self.inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def _plain(dim: int, base: float) -> Tensor:
    exponents = torch.arange(0, dim, 2, dtype=torch.int64, device="cpu").float() / dim
    return 1.0 / (base**exponents)


def _number(scaling: Mapping[str, Any], name: str) -> float:
    value = scaling.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        raise ConfigError(f"rope_scaling needs a positive {name}, not {value!r}: {dict(scaling)}")
    return float(value)


def _default(inv_freq: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    return inv_freq


def _linear(inv_freq: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    return inv_freq / _number(scaling, "factor")


def _llama3(inv_freq: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Stretch long waves by `factor`, keep short ones, interpolate between (arXiv:2407.21783)."""
    factor = _number(scaling, "factor")
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    trained = _number(scaling, "original_max_position_embeddings")
    if low >= high:
        raise ConfigError(
            f"rope_scaling: low_freq_factor={low} must be below high_freq_factor={high}"
        )
    wavelength = 2 * math.pi / inv_freq
    smooth = (trained / wavelength - low) / (high - low)
    between = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    stretched = torch.where(wavelength > trained / low, inv_freq / factor, inv_freq)
    is_between = (wavelength >= trained / high) & (wavelength <= trained / low)
    return torch.where(is_between, between, stretched)


_SCALINGS: dict[str, Callable[[Tensor, Mapping[str, Any]], Tensor]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
}


def rope_from_config(config: Any) -> RotaryEmbedding:
    """The rotary embedding that a Hugging Face style config describes.

    Reads `rope_theta`, `rope_scaling`, `head_dim`, `max_position_embeddings`.
    Raises: ConfigError for an unknown rope type or missing scaling numbers.
    """
    scaling = config.rope_scaling or {"rope_type": "default"}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in _SCALINGS:
        raise ConfigError(f"rope type {kind!r} is not known; known are {sorted(_SCALINGS)}")
    inv_freq = _SCALINGS[kind](_plain(config.head_dim, config.rope_theta), scaling)
    return RotaryEmbedding(
        config.head_dim, config.max_position_embeddings, config.rope_theta, inv_freq
    )


def rotate_half(x: Tensor) -> Tensor:
    """(a, b) -> (-b, a) on the halves of the last dimension."""
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], dim=-1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each head. Shapes: x [B, N, S, D]; cos, sin [B, S, D] -> [B, N, S, D]."""
    return x * cos.unsqueeze(1) + rotate_half(x) * sin.unsqueeze(1)

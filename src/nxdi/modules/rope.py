"""Rotary position embeddings: the tables, their scaling rules, and how they turn queries and keys.

Source: arXiv:2104.09864; the scaling rules are named as in Hugging Face's `rope_scaling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nxdi.errors import ConfigError
from nxdi.kernels.ops import RopeCall
from nxdi.kernels.registry import Kernel, choose, register
from nxdi.modules.yarn import Yarn, growth


class RotaryEmbedding(nn.Module):
    """Angles of each position as (cos, sin), and how they turn a head.

    Shapes: x (only its dtype counts), position_ids int [B, S] -> two [B, S, dim], the halves
    repeated. Tables are computed in float32, as Hugging Face does. With `dim` below the size of a
    head, only its first `dim` values are turned.
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
        self.register_buffer(
            "inv_freq",
            plain_frequencies(dim, base) if inv_freq is None else inv_freq,
            persistent=False,
        )

    def frequencies(self, position_ids: Tensor) -> Tensor:
        """One frequency per pair of values: [dim / 2], or of each row [B, 1, dim / 2]."""
        return self.inv_freq

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids.unsqueeze(-1).float() * self.frequencies(position_ids)
        angles = torch.cat([angles, angles], dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turn each head. Shapes: x [B, N, S, D]; cos, sin [B, S, dim] -> [B, N, S, D]."""
        return apply_rotary(x, cos, sin)


class InterleavedRotaryEmbedding(RotaryEmbedding):
    """Turns pairs of neighbours (x0, x1), (x2, x3), ... instead of the two halves of a head.

    Source: arXiv:2104.09864 as written; GPT-J, GLM and Cohere.
    """

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids.unsqueeze(-1).float() * self.frequencies(position_ids)
        angles = angles.repeat_interleave(2, dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned, rest = x[..., : self.dim], x[..., self.dim :]
        even, odd = turned.unflatten(-1, (-1, 2)).unbind(-1)
        quarter_turn = torch.stack([-odd, even], dim=-1).flatten(-2)
        turned = turned * cos.unsqueeze(1) + quarter_turn * sin.unsqueeze(1)
        return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


class LongRotaryEmbedding(RotaryEmbedding):
    """LongRoPE: `inv_freq` for rows of up to `trained_len` tokens, `long_inv_freq` for longer ones.

    A row's last position in the step decides for all its tokens, so one graph serves both sides
    and no row depends on its neighbours. Keys in the cache stay as they were turned: the token at
    position `trained_len` cannot be decoded, its sequence is prefilled anew (`longrope_switch`).
    Source: arXiv:2402.13753.
    """

    long_inv_freq: Tensor

    def __init__(
        self,
        dim: int,
        max_position_embeddings: int,
        base: float,
        *,
        trained_len: int,
        short_factor: Sequence[float],
        long_factor: Sequence[float],
        attention_scaling: float,
    ) -> None:
        plain = plain_frequencies(dim, base)
        short, long = (torch.tensor(f, dtype=torch.float32) for f in (short_factor, long_factor))
        super().__init__(dim, max_position_embeddings, base, plain / short, attention_scaling)
        self.trained_len = trained_len
        self.register_buffer("long_inv_freq", plain / long, persistent=False)

    def frequencies(self, position_ids: Tensor) -> Tensor:
        is_long = position_ids.amax(dim=-1)[:, None, None] >= self.trained_len
        return torch.where(is_long, self.long_inv_freq, self.inv_freq)


Rotation = Callable[[Tensor, Tensor, Tensor], Tensor]


def rotation_of(rotary_emb: nn.Module) -> Rotation:
    """How a rotary embedding turns heads; one that is not ours turns halves."""
    return rotary_emb.rotate if isinstance(rotary_emb, RotaryEmbedding) else apply_rotary


def turn_heads(
    rotary_emb: nn.Module, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn the heads of queries and keys.

    Shapes: q [B, N_q, S, D], k [B, N_kv, S, D]; cos, sin [B, S, dim] -> the same as q and k.
    """
    rotate = rotation_of(rotary_emb)
    turns_halves = getattr(rotate, "__func__", rotate) in (RotaryEmbedding.rotate, apply_rotary)
    call = RopeCall(
        num_tokens=q.shape[0] * q.shape[2],
        num_heads=q.shape[1],
        num_key_value_heads=k.shape[1],
        head_dim=q.shape[3],
        dim=cos.shape[-1],
        dtype=q.dtype,
        peculiarity=None if turns_halves else f"{type(rotary_emb).__name__} turns no halves",
    )
    turned: tuple[Tensor, Tensor] = choose(ROPE, call).run(rotate, q, k, cos, sin, call)
    return turned


def _turn_both(
    rotate: Rotation, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, call: RopeCall
) -> tuple[Tensor, Tensor]:
    return rotate(q, cos, sin), rotate(k, cos, sin)


ROPE = "rope"
register(ROPE, "generic", Kernel.plain(_turn_both))


def plain_frequencies(dim: int, base: float) -> Tensor:
    """base ** (-2i / dim) for each pair i, float32 [dim / 2]."""
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    return 1.0 / (base**exponents)


def polar_frequencies(dim: int, theta: float, use_scaled: bool, position_ids: Tensor) -> Tensor:
    """(cos, sin) of each pair's angle at each position, float32 [..., dim / 2, 2].

    use_scaled: with the scaling of Llama 3.1.
    """
    frequencies = plain_frequencies(dim, theta).to(position_ids.device)
    if use_scaled:
        frequencies = llama3_frequencies(frequencies, _LLAMA_3_1)
    angles = position_ids.unsqueeze(-1).float() * frequencies
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def _number(scaling: Mapping[str, Any], name: str) -> float:
    value = scaling.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        raise ConfigError(f"RoPE needs a positive {name}, not {value!r}: {dict(scaling)}")
    return float(value)


def _number_or(default: float, scaling: Mapping[str, Any], name: str) -> float:
    return _number(scaling, name) if scaling.get(name) else default


def _default(inv_freq: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    return inv_freq


def _linear(inv_freq: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    return inv_freq / _number(scaling, "factor")


def llama3_frequencies(inv_freq: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Stretch long waves by `factor`, keep short ones, interpolate between (arXiv:2407.21783)."""
    factor = _number(scaling, "factor")
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    trained = _number(scaling, "original_max_position_embeddings")
    if low > high:
        raise ConfigError(
            f"rope_scaling: low_freq_factor={low} must not be above high_freq_factor={high}"
        )
    wavelength = 2 * math.pi / inv_freq
    smooth = (trained / wavelength - low) / (high - low)
    between = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    stretched = torch.where(wavelength > trained / low, inv_freq / factor, inv_freq)
    is_between = (wavelength > trained / high) & (wavelength <= trained / low)
    return torch.where(is_between, between, stretched)


_LLAMA_3_1 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_SCALINGS: dict[str, Callable[[Tensor, Mapping[str, Any]], Tensor]] = {
    "default": _default,
    "linear": _linear,
    "llama3": llama3_frequencies,
}


def rope_from_config(
    config: Any,
    parameters: Mapping[str, Any] | None = None,
    rotary_cls: type[RotaryEmbedding] = RotaryEmbedding,
) -> RotaryEmbedding:
    """The rotary embedding that a Hugging Face style config describes.

    Reads `head_dim` and `max_position_embeddings`; `rope_theta`, `rope_scaling` and
    `partial_rotary_factor` too, unless `parameters` gives them in one mapping, as
    `config.rope_parameters[layer_type]` does.
    Raises: ConfigError for an unknown rope type or missing scaling numbers.
    """
    if parameters is None:
        scaling = config.rope_scaling or {"rope_type": "default"}
        partial = getattr(config, "partial_rotary_factor", None)
        parameters = {**scaling, "rope_theta": config.rope_theta, "partial_rotary_factor": partial}
    kind = parameters.get("rope_type", parameters.get("type"))
    base, dim = _number(parameters, "rope_theta"), config.head_dim
    if (partial := parameters.get("partial_rotary_factor")) is not None:
        dim = int(dim * partial)
    if kind == "longrope" and rotary_cls is RotaryEmbedding:
        return _longrope(config, dim, base, parameters)
    if kind == "yarn":
        return _yarn(config, dim, base, parameters, rotary_cls)
    if kind not in _SCALINGS:
        known = sorted([*_SCALINGS, "longrope", "yarn"])
        raise ConfigError(f"rope type {kind!r} is not known; known are {known}")
    inv_freq = _SCALINGS[kind](plain_frequencies(dim, base), parameters)
    return rotary_cls(dim, config.max_position_embeddings, base, inv_freq)


def longrope_switch(config: Any) -> int | None:
    """The position from which LongRoPE turns all tokens of a sequence otherwise; None: nowhere."""
    scaling = getattr(config, "rope_scaling", None) or {}
    if scaling.get("rope_type", scaling.get("type")) != "longrope":
        return None
    return int(_number(scaling, "original_max_position_embeddings"))


def _yarn(
    config: Any,
    dim: int,
    base: float,
    scaling: Mapping[str, Any],
    rotary_cls: type[RotaryEmbedding],
) -> RotaryEmbedding:
    if base <= 1:
        raise ConfigError(f"YaRN needs a rope_theta above 1, not {base}; correct it")
    factor = _number(scaling, "factor")
    yarn = Yarn(
        factor,
        _number(scaling, "original_max_position_embeddings"),
        beta_fast=_number_or(32.0, scaling, "beta_fast"),
        beta_slow=_number_or(1.0, scaling, "beta_slow"),
        truncate=scaling.get("truncate", True),
    )
    inv_freq = yarn.frequencies(plain_frequencies(dim, base), base)
    grows = growth(factor)
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        grows = growth(factor, _number(scaling, "mscale"))
        grows /= growth(factor, _number(scaling, "mscale_all_dim"))
    grows = _number_or(grows, scaling, "attention_factor")
    return rotary_cls(dim, config.max_position_embeddings, base, inv_freq, grows)


def _longrope(
    config: Any, dim: int, base: float, scaling: Mapping[str, Any]
) -> LongRotaryEmbedding:
    trained_len = int(_number(scaling, "original_max_position_embeddings"))
    if trained_len < 2:
        raise ConfigError(
            f"LongRoPE with original_max_position_embeddings={trained_len}: give the length the "
            "model was trained on, at least 2"
        )
    neuron = config.neuron_config
    if neuron.extends_prompts and trained_len < neuron.max_length:
        raise ConfigError(
            f"with LongRoPE all tokens of a prompt longer than {trained_len} are turned otherwise, "
            "so it cannot come in pieces; leave out is_prefix_caching, chunked_prefill_config and "
            f"windowed_context_encoding_size, or lower seq_len to at most {trained_len}"
        )
    if neuron.max_context_length <= trained_len < neuron.max_length:
        raise ConfigError(
            f"with LongRoPE a sequence that grows beyond {trained_len} tokens is prefilled anew, "
            f"which max_context_length={neuron.max_context_length} does not allow; raise it to "
            f"at least {trained_len + 1}, or lower seq_len to at most {trained_len}"
        )
    longest = config.max_position_embeddings
    factor = scaling.get("factor") or longest / trained_len
    grows = math.sqrt(1 + math.log(factor) / math.log(trained_len)) if factor > 1 else 1.0
    return LongRotaryEmbedding(
        dim,
        longest,
        base,
        trained_len=trained_len,
        short_factor=_factors(scaling, "short_factor", dim // 2),
        long_factor=_factors(scaling, "long_factor", dim // 2),
        attention_scaling=scaling.get("attention_factor") or grows,
    )


def _factors(scaling: Mapping[str, Any], name: str, count: int) -> Sequence[float]:
    values = scaling.get(name)
    if (
        not isinstance(values, Sequence)
        or len(values) != count
        or not all(isinstance(value, (int, float)) and value > 0 for value in values)
    ):
        raise ConfigError(f"rope_scaling needs {count} positive numbers as {name}, not {values!r}")
    return values


def rotate_half(x: Tensor) -> Tensor:
    """(a, b) -> (-b, a) on the halves of the last dimension."""
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], dim=-1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the halves of each head's first `dim` values.

    Shapes: x [B, N, S, D]; cos, sin [B, S, dim] -> [B, N, S, D].
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    dim = cos.shape[-1]
    if dim == x.shape[-1]:
        return x * cos + rotate_half(x) * sin
    turned, rest = x[..., :dim], x[..., dim:]
    return torch.cat([turned * cos + rotate_half(turned) * sin, rest], dim=-1)

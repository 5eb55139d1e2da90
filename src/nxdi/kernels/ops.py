"""Typed kernel requests: what a kernel is told before it is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nxdi.kernels.masks import MaskPolicy


@dataclass(frozen=True)
class AttendCall:
    """One attention computation with static shapes; keys and values may differ in size.

    `aligned` promises that the queries are the tokens of the last keys, one for one, and that
    padding is on the right, as in a prefill: a plain causal mask over indices is then exact.
    """

    num_kv_heads: int
    group_size: int
    num_queries: int
    num_keys: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    mask: MaskPolicy
    scale: float
    softcap: float | None
    has_sinks: bool
    aligned: bool


@dataclass(frozen=True)
class Int4Call:
    """A product with weights of four bits: the dtype of the activations, columns with one scale."""

    dtype: torch.dtype
    group_size: int


@dataclass(frozen=True)
class Int8Call:
    """A product of 8-bit activations with 8-bit weights over so many columns."""

    num_columns: int


@dataclass(frozen=True)
class NormCall:
    """RMSNorm of so many rows of so many elements."""

    num_rows: int
    hidden_size: int
    dtype: torch.dtype


@dataclass(frozen=True)
class ArgmaxCall:
    """The most likely token of each row of logits [B, V]."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class RouteCall:
    """The choice of experts for tokens. `peculiarity`: what only the model's own router computes.

    Other names are those of `MoESpec`.
    """

    num_tokens: int
    hidden_size: int
    num_experts: int
    top_k: int
    dtype: torch.dtype
    weight_dtype: torch.dtype
    act: str
    act_over_top_k: bool
    normalize: bool
    peculiarity: str | None

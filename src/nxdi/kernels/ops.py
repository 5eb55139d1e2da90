"""Typed kernel requests: what a kernel is told before it is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nxdi.kernels.masks import MaskPolicy

# The options about the kernels of projections, whose weights are kept as those read them.
MLP_OPTIONS = ("mlp_kernel_enabled", "mlp_tkg_nki_kernel_enabled")
QKV_OPTIONS = ("qkv_kernel_enabled", "qkv_nki_kernel_enabled")
OUTPUT_OPTIONS = ("out_proj_kernel_enabled",)


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
class StoredAttendCall:
    """`attend` to keys and values as a cache stores them, in blocks unless `block_size` is 0."""

    attend: AttendCall
    kv_dtype: torch.dtype
    block_size: int


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
class RopeCall:
    """Rotary embedding of the first `dim` values of each head of so many tokens.

    `peculiarity`: see `GatedMLPCall`.
    """

    num_tokens: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    dim: int
    dtype: torch.dtype
    peculiarity: str | None


@dataclass(frozen=True)
class ArgmaxCall:
    """The most likely token of each row of logits [B, V]."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class OutputCall:
    """The projection of attention's result of so many rows. `peculiarity`: see `GatedMLPCall`."""

    num_rows: int
    input_size: int
    output_size: int
    dtype: torch.dtype
    peculiarity: str | None


@dataclass(frozen=True)
class QKVCall:
    """Queries, keys and values of so many rows. `peculiarity`: see `GatedMLPCall`."""

    num_rows: int
    hidden_size: int
    q_size: int
    kv_size: int
    head_dim: int
    dtype: torch.dtype
    peculiarity: str | None


@dataclass(frozen=True)
class GatedMLPCall:
    """A gated MLP of so many rows, over a rank's part of the intermediate size.

    peculiarity: what only the model's own code computes, such as weights that no kernel reads.
    """

    num_rows: int
    hidden_size: int
    intermediate_size: int
    dtype: torch.dtype
    act: str
    peculiarity: str | None


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


@dataclass(frozen=True)
class ExpertsCall:
    """The chosen experts of so many tokens, of `num_experts` that a rank has a part of.

    `peculiarity`: what only the model's own code computes.
    """

    num_tokens: int
    top_k: int
    num_experts: int
    hidden_size: int
    intermediate_size: int
    dtype: torch.dtype
    peculiarity: str | None

    @property
    def num_choices(self) -> int:
        return self.num_tokens * self.top_k

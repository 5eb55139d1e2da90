"""Small attention calls, and the check that a kernel computes them as the textbook does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nxdi.kernels.masks import Causal
from nxdi.kernels.ops import AttendCall
from plain_attention import plain_attention
from tolerances import ATTENTION_FP32

BATCH, KV_HEADS, GROUP, HEAD_DIM = 2, 2, 3, 8


def make_call(num_queries: int, num_keys: int, **options: Any) -> AttendCall:
    call = {
        "num_kv_heads": KV_HEADS,
        "group_size": GROUP,
        "num_queries": num_queries,
        "num_keys": num_keys,
        "head_dim": HEAD_DIM,
        "value_dim": HEAD_DIM,
        "dtype": torch.float32,
        "mask": Causal(),
        "scale": 0.4,
        "softcap": None,
        "has_sinks": False,
        "aligned": num_queries == num_keys,
    }
    return AttendCall(**{**call, **options})


def drawn(call: AttendCall) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(call.num_queries + call.num_keys)
    q = torch.randn(BATCH, KV_HEADS, GROUP, call.num_queries, HEAD_DIM, generator=generator)
    k, v = (
        torch.randn(BATCH, KV_HEADS, call.num_keys, size, generator=generator)
        for size in (HEAD_DIM, call.value_dim)
    )
    return 2 * q, 2 * k, v


def positions(call: AttendCall) -> tuple[Tensor, Tensor]:
    """The queries are the last tokens before the end."""
    keys = torch.arange(call.num_keys).expand(BATCH, -1)
    return keys[:, call.num_keys - call.num_queries :], keys


def check(kernel: Callable[..., Tensor], call: AttendCall) -> None:
    q, k, v = drawn(call)
    allowed = call.mask.allowed(*positions(call))
    sinks = torch.tensor([[0.5, -1, 2], [0, 3, -2]]) if call.has_sinks else None
    got = kernel(q, k, v, allowed, sinks, call)
    assert got.shape == (*q.shape[:-1], call.value_dim)
    flat_sinks = None if sinks is None else sinks.flatten()
    expected = plain_attention(q.flatten(1, 2), k, v, allowed, call.scale, call.softcap, flat_sinks)
    torch.testing.assert_close(
        got.flatten(1, 2).double(), expected, rtol=ATTENTION_FP32, atol=ATTENTION_FP32
    )

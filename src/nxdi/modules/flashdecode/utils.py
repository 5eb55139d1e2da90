"""The size of NxDI's flash-decoding groups, which models compute for their config."""

from __future__ import annotations


def calculate_num_cores_per_group(num_attn_heads: int, num_kv_heads: int, tp_degree: int) -> int:
    """How many ranks share one key/value head: the number that would split its sequence."""
    return max(1, min(tp_degree // num_kv_heads, num_attn_heads // num_kv_heads))

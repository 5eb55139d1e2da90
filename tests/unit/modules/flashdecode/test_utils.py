from __future__ import annotations

import pytest

from nxdi.modules.flashdecode.utils import calculate_num_cores_per_group


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "tp_degree", "expected"),
    [
        (32, 8, 8, 1),
        (32, 8, 32, 4),
        (32, 8, 64, 4),  # no more than the heads that share it
        (32, 8, 2, 1),  # each rank has several heads
        (71, 1, 8, 8),
        (8, 8, 32, 1),
    ],
)
def test_ranks_that_share_a_head(
    num_heads: int, num_kv_heads: int, tp_degree: int, expected: int
) -> None:
    assert calculate_num_cores_per_group(num_heads, num_kv_heads, tp_degree) == expected

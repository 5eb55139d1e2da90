from __future__ import annotations

import pytest
import torch

from nxdi.modules.attention.qk import PerHeadQKNorm
from tiny_modules import drawn
from tolerances import SUM_ORDER_FP32


def test_each_head_is_normalised_on_its_own() -> None:
    norm = PerHeadQKNorm(head_dim=4, eps=1e-3, dtype=torch.float32)
    norm.q_norm.weight.copy_(1 + 0.3 * drawn(4))
    norm.k_norm.weight.copy_(1 + 0.3 * drawn(4, seed=1))
    q, k = drawn(2, 6, 3, 4), drawn(2, 2, 3, 4)
    for got, x, weight in zip(
        norm(q, k), (q, k), (norm.q_norm.weight, norm.k_norm.weight), strict=True
    ):
        wide = x.double()
        expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * weight.double()
        torch.testing.assert_close(got.double(), expected, rtol=SUM_ORDER_FP32, atol=SUM_ORDER_FP32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_called_as_in_hugging_face(dtype: torch.dtype) -> None:
    state = PerHeadQKNorm(4, 1e-6, dtype).state_dict()
    assert {name: tensor.dtype for name, tensor in state.items()} == {
        "q_norm.weight": dtype,
        "k_norm.weight": dtype,
    }

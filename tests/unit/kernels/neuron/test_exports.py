"""Every NKI kernel is an operator that a graph can hold, with its reference's values and shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nxdi.kernels.neuron.op import load_op

BF16 = torch.bfloat16
ROWS = torch.arange(1024.0).view(8, 128).to(BF16) / 512
CALLS: dict[str, tuple[Any, ...]] = {
    "rmsnorm": (ROWS, ROWS[:1]),
    "rmsnorm_quant": (ROWS, ROWS[:1]),
    "rope": (ROWS.view(8, 2, 64), ROWS[:, :64].view(8, 1, 64), ROWS[:, :64], ROWS[:, 64:]),
    "qkv": (ROWS, *[ROWS.T.contiguous()] * 3, 4, ROWS[:1, :24], ROWS[:1]),
    "router_topk": (ROWS, ROWS, 2),
    "moe_decode": (
        ROWS[:1],
        ROWS.T.reshape(1, 128, 8).contiguous(),
        ROWS[:4].unsqueeze(0),
        torch.ones(1, 1),
        torch.zeros(1, 1, dtype=torch.int32),
    ),
    "sampling": (ROWS, 3),
}


class Caller(nn.Module):
    def __init__(self, name: str, others: tuple[Any, ...]) -> None:
        super().__init__()
        self.op, self.others = load_op(name), others

    def forward(self, x: Tensor) -> Any:
        return self.op(x, *self.others)


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", CALLS)
def test_a_graph_holds_it(name: str) -> None:
    first, *others = CALLS[name]
    module = Caller(name, tuple(others))
    with torch.no_grad():
        exported = torch.export.export(module, (first,), strict=False)
        results = as_tuple(exported.module()(first))
    calls = [node for node in exported.graph.nodes if node.target is module.op]
    assert len(calls) == 1
    for result, planned in zip(results, as_tuple(calls[0].meta["val"]), strict=True):
        assert (result.shape, result.dtype) == (planned.shape, planned.dtype)
    for result, expected in zip(results, as_tuple(module(first)), strict=True):
        assert torch.equal(result, expected)

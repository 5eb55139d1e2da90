"""The gated MLP kernels as operators of torch."""

from __future__ import annotations

from random import Random

import pytest
import torch

from mlp_calls import draw_mlp
from nxdi.kernels.neuron.op import load_op


@pytest.mark.parametrize("name", ["mlp_prefill", "mlp_decode"])
def test_it_is_an_operator_with_a_fake_kernel(name: str) -> None:
    op = load_op(name)
    drawn = draw_mlp(Random(0), [3], [2])
    torch.library.opcheck(op, drawn.tensors, drawn.options)


def test_a_model_exports_with_it() -> None:
    class Block(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = load_op("mlp_decode")(*tensors)
            return out

    tensors = draw_mlp(Random(0), [3], [2]).tensors[:4]
    exported = torch.export.export(Block(), tensors)
    assert "nxdi_nki.mlp_decode" in exported.graph_module.code
    assert torch.equal(exported.module()(*tensors), Block()(*tensors))

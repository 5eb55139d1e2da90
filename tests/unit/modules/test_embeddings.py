from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nxdi.modules.embeddings import causal_lm_ends
from nxdi.parallel_layers.groups import SimulatedWorld
from tiny_modules import drawn, filled, full_weights, rank_modules, tiny_config
from tolerances import SUM_ORDER_FP32

IDS = torch.tensor([[0, 10, 3, 3], [7, 1, 9, 2]], dtype=torch.int32)


class Ends(nn.Module):
    """Both ends with nothing between."""

    def __init__(self, bias: bool = False, **options: object) -> None:
        super().__init__()
        self.embed_tokens, self.lm_head = causal_lm_ends(tiny_config(**options), bias)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed_tokens(ids)
        return x, self.lm_head(x)


def check(got: tuple[Tensor, Tensor], full: dict[str, Tensor]) -> None:
    x = F.embedding(IDS, full["embed_tokens.weight"])
    logits = F.linear(x, full["lm_head.weight"], full.get("lm_head.bias"))
    assert torch.equal(got[0], x)
    torch.testing.assert_close(got[1], logits, rtol=SUM_ORDER_FP32, atol=SUM_ORDER_FP32)


@pytest.mark.parametrize("bias", [False, True])
def test_one_rank(bias: bool) -> None:
    ends = filled(lambda: Ends(bias))
    assert ("lm_head.bias" in ends.state_dict()) is bias
    check(ends(IDS), ends.state_dict())


@pytest.mark.parametrize("vocab_parallel", [False, True])
@pytest.mark.parametrize("tp", [2, 4])  # 11 tokens divide by neither
def test_ranks_together(tp: int, vocab_parallel: bool) -> None:
    def make() -> Ends:
        return Ends(tp_degree=tp, vocab_parallel=vocab_parallel)

    full = full_weights(make)
    full.pop("embed_tokens.rank_util.rank", None)
    for got in SimulatedWorld(tp).run([lambda m=m: m(IDS) for m in rank_modules(make, tp, full)]):
        assert got[1].shape == (2, 4, 11)
        check(got, full)


@pytest.mark.parametrize("vocab_parallel", [False, True])
def test_sequence_parallelism_leaves_each_rank_a_piece(vocab_parallel: bool) -> None:
    def make() -> nn.Module:
        options = {"tp_degree": 2, "sequence_parallel_enabled": True}
        return causal_lm_ends(tiny_config(vocab_parallel=vocab_parallel, **options))[0]

    full = {"weight": drawn(11, 16)}
    got = SimulatedWorld(2).run([lambda m=m: m(IDS) for m in rank_modules(make, 2, full)])
    assert torch.equal(torch.cat(got, dim=1), F.embedding(IDS, full["weight"]))


def test_weights_have_the_dtype_of_the_config() -> None:
    ends = Ends(torch_dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in ends.state_dict().values()} == {torch.bfloat16}

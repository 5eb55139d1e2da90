from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nxdi.errors import ConfigError, UnsupportedError
from nxdi.parallel_layers.groups import SimulatedWorld
from nxdi.parallel_layers.layers import (
    ColumnParallelLinear,
    ParallelEmbedding,
    RankShard,
    ReplicatedLinear,
    RowParallelLinear,
    SPMDRank,
)
from nxdi.parallel_layers.parallel_state import tensor_parallel
from nxdi.parallel_layers.sharding import DimShard, shard_of
from tolerances import SUM_ORDER_FP32

BATCH, LENGTH, WIDE, NARROW = 2, 4, 12, 8


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def sharded(make: Callable[[], nn.Module], tp: int, full: dict[str, Tensor]) -> list[nn.Module]:
    """One module per rank, each with its piece of the full weights."""
    modules = []
    for rank in range(tp):
        with tensor_parallel(tp):
            module = make()
        for name, parameter in module.named_parameters():
            shard = shard_of(parameter)
            whole = full.get(name, torch.empty(0))
            if shard is not None:
                whole = shard.cut(whole, rank, tuple(parameter.shape))
            assert whole.shape == parameter.shape
            parameter.copy_(whole)
        modules.append(module)
    return modules


def run(modules: list[nn.Module], inputs: list[Tensor]) -> list[Tensor]:
    if len(modules) == 1:
        return [modules[0](inputs[0])]
    calls = [lambda m=m, x=x: m(x) for m, x in zip(modules, inputs, strict=True)]
    return SimulatedWorld(len(modules)).run(calls)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=SUM_ORDER_FP32, atol=SUM_ORDER_FP32)


FULL = {"weight": drawn(WIDE, NARROW), "bias": drawn(WIDE)}
X = drawn(BATCH, LENGTH, NARROW)


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gather_output", [True, False])
def test_column_parallel(tp: int, bias: bool, gather_output: bool) -> None:
    modules = sharded(
        lambda: ColumnParallelLinear(NARROW, WIDE, bias, gather_output=gather_output), tp, FULL
    )
    expected = F.linear(X, FULL["weight"], FULL["bias"] if bias else None)
    got = run(modules, [X] * tp)
    if gather_output:
        assert all(x.shape == expected.shape for x in got)
        for x in got:
            close(x, expected)
    else:
        close(torch.cat(got, -1), expected)


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_replicated(tp: int, bias: bool) -> None:
    expected = F.linear(X, FULL["weight"], FULL["bias"] if bias else None)
    for got in run(sharded(lambda: ReplicatedLinear(NARROW, WIDE, bias), tp, FULL), [X] * tp):
        close(got, expected)


@pytest.mark.parametrize("tp", [5, 7])
def test_column_parallel_padded(tp: int) -> None:
    modules = sharded(lambda: ColumnParallelLinear(NARROW, WIDE, pad=True), tp, FULL)
    for got in run(modules, [X] * tp):
        close(got, F.linear(X, FULL["weight"], FULL["bias"]))


def test_column_parallel_gathers_sequences_first() -> None:
    modules = sharded(
        lambda: ColumnParallelLinear(NARROW, WIDE, sequence_parallel_enabled=True), 2, FULL
    )
    for got in run(modules, list(X.chunk(2, dim=1))):
        close(got, F.linear(X, FULL["weight"], FULL["bias"]))


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_row_parallel_adds_its_bias_once(tp: int, bias: bool) -> None:
    full = {"weight": drawn(NARROW, WIDE), "bias": drawn(NARROW)}
    x = drawn(BATCH, LENGTH, WIDE)
    modules = sharded(
        lambda: RowParallelLinear(WIDE, NARROW, bias, input_is_parallel=True), tp, full
    )
    expected = F.linear(x, full["weight"], full["bias"] if bias else None)
    for got in run(modules, list(x.chunk(tp, dim=-1))):
        close(got, expected)


def test_row_parallel_padded() -> None:
    full = {"weight": drawn(NARROW, WIDE), "bias": drawn(NARROW)}
    x = drawn(BATCH, LENGTH, WIDE)
    modules = sharded(
        lambda: RowParallelLinear(WIDE, NARROW, input_is_parallel=True, pad=True), 5, full
    )
    pieces = F.pad(x, (0, 3)).chunk(5, dim=-1)
    for got in run(modules, list(pieces)):
        close(got, F.linear(x, full["weight"], full["bias"]))


def test_row_parallel_scatters_sequences() -> None:
    full = {"weight": drawn(NARROW, WIDE), "bias": drawn(NARROW)}
    x = drawn(BATCH, LENGTH, WIDE)
    modules = sharded(
        lambda: RowParallelLinear(
            WIDE, NARROW, input_is_parallel=True, sequence_parallel_enabled=True
        ),
        2,
        full,
    )
    got = torch.cat(run(modules, list(x.chunk(2, dim=-1))), dim=1)
    close(got, F.linear(x, full["weight"], full["bias"]))


def test_row_parallel_may_leave_the_sum_to_the_caller() -> None:
    def make() -> RowParallelLinear:
        return RowParallelLinear(8, 6, bias=False, input_is_parallel=True, reduce_output=False)

    weight, x = drawn(6, 8), drawn(3, 8)
    first, second = sharded(make, 2, {"weight": weight})
    got = first(x[:, :4]) + second(x[:, 4:])
    torch.testing.assert_close(got, x @ weight.t(), rtol=SUM_ORDER_FP32, atol=SUM_ORDER_FP32)
    with pytest.raises(ConfigError, match="would add its bias once per rank"):
        RowParallelLinear(8, 6, bias=True, reduce_output=False)


def test_column_then_row_is_a_whole_block() -> None:
    down = {"weight": drawn(NARROW, WIDE), "bias": drawn(NARROW)}
    first = sharded(lambda: ColumnParallelLinear(NARROW, WIDE, gather_output=False), 4, FULL)
    second = sharded(lambda: RowParallelLinear(WIDE, NARROW, input_is_parallel=True), 4, down)
    blocks = [nn.Sequential(a, b) for a, b in zip(first, second, strict=True)]
    expected = F.linear(F.linear(X, FULL["weight"], FULL["bias"]), down["weight"], down["bias"])
    for got in run(blocks, [X] * 4):
        close(got, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_compute_in_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    module = sharded(lambda: ColumnParallelLinear(NARROW, WIDE, dtype=dtype), 1, FULL)[0]
    assert module.weight.dtype == dtype
    expected = F.linear(X, FULL["weight"].to(dtype).float(), FULL["bias"].to(dtype).float())
    assert torch.equal(module(X), expected)


IDS = torch.tensor([[0, 5, 10, 3], [6, 6, 1, 9]], dtype=torch.int32)
TABLE = {"weight": drawn(11, NARROW)}


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("across_embedding", [True, False])
def test_embedding(tp: int, across_embedding: bool) -> None:
    def make() -> nn.Module:
        return ParallelEmbedding(11, NARROW, shard_across_embedding=across_embedding, pad=True)

    for got in run(sharded(make, tp, TABLE), [IDS] * tp):
        assert torch.equal(got, F.embedding(IDS, TABLE["weight"]))


@pytest.mark.parametrize("across_embedding", [True, False])
def test_embedding_with_pieces_of_the_sequence(across_embedding: bool) -> None:
    def make() -> nn.Module:
        return ParallelEmbedding(
            11,
            NARROW,
            shard_across_embedding=across_embedding,
            pad=True,
            sequence_parallel_enabled=True,
        )

    got = torch.cat(run(sharded(make, 2, TABLE), [IDS] * 2), dim=1)
    assert torch.equal(got, F.embedding(IDS, TABLE["weight"]))


def test_embedding_width_that_does_not_divide() -> None:
    def make() -> nn.Module:
        return ParallelEmbedding(11, NARROW, shard_across_embedding=True, pad=True)

    for got in run(sharded(make, 3, TABLE), [IDS] * 3):
        assert torch.equal(got, F.embedding(IDS, TABLE["weight"]))


def test_the_rank_is_a_weight() -> None:
    for rank, module in enumerate(sharded(lambda: SPMDRank(4), 4, {})):
        assert module.get_rank().tolist() == [rank]
        assert module.rank.dtype == torch.int32
    rule = shard_of(SPMDRank(4).rank)
    assert isinstance(rule, RankShard)
    assert rule.full_shape((1,)) == (4,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ColumnParallelLinear(8, 9), "output_size=9 .*tp_degree=2; pass pad=True"),
        (
            lambda: RowParallelLinear(9, 8, input_is_parallel=True),
            "input_size=9 .*tp_degree=2; pass pad=True",
        ),
        (lambda: ParallelEmbedding(9, 8), "num_embeddings=9 .*tp_degree=2; pass pad=True"),
        (
            lambda: ParallelEmbedding(8, 9, shard_across_embedding=True),
            "embedding_dim=9 .*tp_degree=2; pass pad=True",
        ),
    ],
)
def test_sizes_that_do_not_divide(make: Callable[[], nn.Module], message: str) -> None:
    with tensor_parallel(2), pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda **kw: ColumnParallelLinear(8, 8, **kw),
        lambda **kw: RowParallelLinear(8, 8, **kw),
        lambda **kw: ParallelEmbedding(8, 8, **kw),
    ],
)
def test_unknown_keywords_are_named(make: Callable[..., nn.Module]) -> None:
    with pytest.raises(UnsupportedError, match=r"Parallel\w+ does not take \['skip_bias_add'\]"):
        make(skip_bias_add=True)


def test_a_whole_input_is_not_scattered() -> None:
    with tensor_parallel(2), pytest.raises(UnsupportedError, match="pass input_is_parallel=True"):
        RowParallelLinear(8, 8)
    RowParallelLinear(8, 8)


def test_a_module_keeps_the_group_it_was_built_in() -> None:
    with tensor_parallel(4):
        module = ColumnParallelLinear(NARROW, WIDE)
    assert module.group.size() == 4
    assert tuple(module.weight.shape) == (WIDE // 4, NARROW)
    assert shard_of(module.weight) == DimShard(0, WIDE)

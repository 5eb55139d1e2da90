"""Weights of four bits: equal to a float64 product of what they stand for, in any sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nxdi.errors import ShapeError
from nxdi.kernels.cpu.int4 import GROUP_SIZES, INT4_KERNEL, load_int4_op
from nxdi.kernels.ops import Int4Call
from nxdi.kernels.reference.int4 import INT4_LINEAR, int4_linear, unpack
from nxdi.kernels.registry import choose, platform
from tolerances import LINEAR_FP32

# Below, at and above a byte, a group, a vector of words and a tile; models' own sizes.
SIZES = [(1, 1), (7, 33), (3, 31), (17, 129), (48, 576), (33, 1536), (5, 100), (64, 1030)]


@pytest.fixture(scope="module")
def op() -> Any:
    return load_int4_op()


def pack(values: Tensor) -> Tensor:
    """Integers [N, K] as bytes, one half after the other."""
    rows = [[value & 15 for value in row] + [0] * (len(row) % 2) for row in values.tolist()]
    pairs = [[low | high << 4 for low, high in zip(r[::2], r[1::2], strict=True)] for r in rows]
    return torch.tensor(pairs, dtype=torch.uint8).view(len(rows), -1)


def weights(n: int, k: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """(integers, their bytes, scales)."""
    draw = torch.Generator().manual_seed(n + k)
    values = torch.randint(-8, 8, (n, k), generator=draw)
    return values, pack(values), torch.rand(n, -(-k // group), generator=draw)


def randoms(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_is_product(y: Tensor, x: Tensor, values: Tensor, scale: Tensor, group: int) -> None:
    """The kernel takes 8 * scale * x off a sum of that size: rounding is relative to that."""
    units = scale.double().repeat_interleave(group, 1)[:, : values.shape[1]]
    exact = x.double() @ (values * units).T
    magnitude = x.double().abs() @ (8 * units).T
    assert y.shape == exact.shape
    assert y.dtype == torch.float32
    assert bool(((y - exact).abs() <= LINEAR_FP32 * magnitude).all())


@pytest.mark.parametrize("group", GROUP_SIZES)
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 8, 9, 13, 40, 130])
def test_equals_a_float64_product(op: Any, num_rows: int, group: int) -> None:
    for n, k in SIZES:
        values, weight, scale = weights(n, k, group)
        x = randoms(num_rows, k)
        assert_is_product(op(x, weight, scale), x, values, scale, group)
        call = Int4Call(torch.float32, group)
        assert_is_product(int4_linear(x, weight, scale, call), x, values, scale, group)


def test_bytes_hold_every_integer() -> None:
    values = torch.arange(-8, 8)[None]
    assert unpack(pack(values)).tolist() == values.tolist()
    assert unpack(torch.tensor([0x8F], dtype=torch.uint8)).tolist() == [-1, -8]


@pytest.mark.parametrize("group", GROUP_SIZES)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(op: Any, group: int) -> None:
    _, weight, scale = weights(50, 300, group)
    x = randoms(20, 300)
    alone = torch.cat([op(row[None], weight, scale) for row in x])
    for num_rows in range(1, 21):
        assert torch.equal(op(x[:num_rows], weight, scale), alone[:num_rows])


@pytest.mark.parametrize("skipped", [1, 3])
def test_weights_need_no_alignment(op: Any, skipped: int) -> None:
    values, weight, scale = weights(65, 100, 32)
    storage = torch.zeros(skipped + weight.numel(), dtype=torch.uint8)
    moved = storage[skipped:].view(weight.shape).copy_(weight)
    x = randoms(3, 100)
    assert_is_product(op(x, moved, scale), x, values, scale, 32)


@pytest.mark.parametrize(
    "x",
    [
        randoms(5, 3, 40).transpose(0, 1),
        randoms(40, 6).T,
        randoms(4, 80)[:, ::2],
        randoms(1, 40).expand(7, 40),
        randoms(40),
    ],
    ids=["transposed", "column-major", "every other k", "one row repeated", "vector"],
)
def test_x_may_have_any_shape_and_strides(op: Any, x: Tensor) -> None:
    values, weight, scale = weights(33, 40, 32)
    assert_is_product(op(x, weight, scale), x, values, scale, 32)


@pytest.mark.parametrize("num_rows", [1, 3, 20])
def test_several_weights_give_the_bits_of_separate_calls(op: Any, num_rows: int) -> None:
    x = randoms(num_rows, 300)
    pairs = [weights(n, 300, group)[1:] for n, group in ((70, 32), (1, 128), (33, 32))]
    operands = [operand for pair in pairs for operand in pair]
    alone = [op(x, *pair) for pair in pairs]
    assert torch.equal(op(x, *operands), torch.cat(alone, dim=-1))
    assert torch.equal(op(x, *operands[:4]), torch.cat(alone[:2], dim=-1))
    traced = op(*(tensor.to("meta") for tensor in (x, *operands)))
    assert traced.shape == (num_rows, 104)


def test_sizes_of_zero(op: Any) -> None:
    _, weight, scale = weights(4, 8, 32)
    assert op(randoms(0, 8), weight, scale).shape == (0, 4)
    assert op(randoms(3, 8), weight[:0], scale[:0]).shape == (3, 0)


X, (_, WEIGHT, SCALE) = randoms(3, 200), weights(4, 200, 32)
WRONG = {
    "another K": (randoms(3, 203), WEIGHT, SCALE),
    "16-bit x": (X.bfloat16(), WEIGHT, SCALE),
    "groups of 64": (X, WEIGHT, SCALE[:, :4]),
    "scales of fewer rows": (X, WEIGHT, SCALE[:2]),
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_refused_when_run_and_when_traced(
    op: Any, arguments: tuple[Tensor, ...]
) -> None:
    with pytest.raises(ValueError, match=r"nxdi_cpu::int4_linear: .*must be"):
        op(*arguments)
    with pytest.raises(ShapeError, match=r"int4_linear: .*must be"):
        op(*(tensor.to("meta") for tensor in arguments))


def test_weights_must_be_dense(op: Any) -> None:
    with pytest.raises(ValueError, match=r"must be contiguous; use .contiguous\(\)"):
        op(X, torch.cat([WEIGHT, WEIGHT], 1)[:, : WEIGHT.shape[1]], SCALE)


def test_it_declines_what_it_cannot_compute() -> None:
    with platform("cpu") as choices:
        assert choose(INT4_LINEAR, Int4Call(torch.float32, 32)).name == INT4_KERNEL
        assert choose(INT4_LINEAR, Int4Call(torch.bfloat16, 32)).is_reference
        assert choose(INT4_LINEAR, Int4Call(torch.float32, 64)).is_reference
    reasons = {choice.reason for choice in choices if choice.is_reference}
    assert reasons == {
        f"{INT4_KERNEL}: activations are torch.bfloat16, not float32",
        f"{INT4_KERNEL}: a scale for each 64 columns, not for 32 or 128",
    }

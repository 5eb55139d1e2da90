"""The weight-streaming linear op: equal to a float64 product, row by row, and usable in graphs."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nxdi.errors import ShapeError
from nxdi.kernels.cpu.linear import LINEAR_C_SHIM, load_linear_op
from nxdi.kernels.reference.linear import linear as reference
from tolerances import LINEAR_FP32

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Below, at and above a vector, a step, a tile, a strip of rows and a slice of k; models' own sizes.
SIZES = [(1, 1), (1, 33), (7, 8), (9, 31), (48, 32), (50, 100), (129, 17), (64, 1030), (192, 576)]


@pytest.fixture(scope="module")
def op() -> Any:
    return load_linear_op()


def randoms(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def assert_is_product(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    exact = reference(x.double(), weight, bias)
    magnitude = reference(x.double().abs(), weight.abs(), None if bias is None else bias.abs())
    assert y.shape == exact.shape
    assert y.dtype == torch.float32
    assert y.is_contiguous()
    assert ((y - exact).abs() <= LINEAR_FP32 * magnitude).all()


@pytest.mark.parametrize("num_rows", [1, 2, 3, 6, 7, 8, 13, 16, 17, 40, 130])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_a_float64_product(op: Any, num_rows: int, dtype: torch.dtype):
    for n, k in SIZES:
        x, weight, bias = randoms(num_rows, k), randoms(n, k, dtype=dtype), randoms(n, dtype=dtype)
        assert_is_product(op(x, weight, None), x, weight)
        assert_is_product(op(x, weight, bias), x, weight, bias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(op: Any, dtype: torch.dtype):
    x, weight, bias = randoms(40, 1100), randoms(100, 1100, dtype=dtype), randoms(100)
    alone = torch.cat([op(row[None], weight, bias) for row in x])
    for num_rows in range(1, 41):
        assert torch.equal(op(x[:num_rows], weight, bias), alone[:num_rows])


@pytest.mark.parametrize("bias_dtype", DTYPES)
def test_weight_and_bias_may_differ_in_dtype(op: Any, bias_dtype: torch.dtype):
    x, weight, bias = randoms(2, 40), randoms(20, 40, dtype=torch.float16), randoms(20)
    bias = bias.to(bias_dtype)
    assert_is_product(op(x, weight, bias), x, weight, bias)


def test_the_reference_computes_in_the_dtype_of_x():
    x, weight, bias = randoms(2, 8, dtype=torch.bfloat16), randoms(4, 8), randoms(4)
    assert reference(x, weight, bias).dtype == torch.bfloat16
    assert torch.equal(reference(x.float(), weight), nn.functional.linear(x.float(), weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("skipped", [1, 3])
def test_weights_in_a_mapped_file_need_no_alignment(
    op: Any, tmp_path: Path, dtype: torch.dtype, skipped: int
):
    file, (n, k) = tmp_path / "weights", (65, 100)
    values = torch.from_file(str(file), shared=True, size=skipped + n * k, dtype=dtype)
    weight = values[skipped:].view(n, k)
    weight.copy_(randoms(n, k))
    assert weight.data_ptr() % 16 != 0
    x = randoms(3, k)
    assert_is_product(op(x, weight, None), x, weight)


def test_rows_of_a_wider_weight_and_a_strided_bias(op: Any):
    x, wide, biases = randoms(3, 40), randoms(30, 64), randoms(30, 2)
    assert_is_product(
        op(x, wide[5:25, 8:48], biases[5:25, 1]), x, wide[5:25, 8:48], biases[5:25, 1]
    )


@pytest.mark.parametrize(
    "x",
    [
        randoms(5, 3, 40).transpose(0, 1),
        randoms(40, 6).T,
        randoms(4, 80)[:, ::2],
        randoms(1, 40).expand(7, 40),
        randoms(40),
        randoms(2, 3, 2, 40),
    ],
    ids=["transposed", "column-major", "every other k", "one row repeated", "vector", "4-d"],
)
def test_x_may_have_any_shape_and_strides(op: Any, x: Tensor):
    weight, bias = randoms(33, 40), randoms(33)
    assert_is_product(op(x, weight, bias), x, weight, bias)


@pytest.mark.parametrize(
    ("x_shape", "weight_shape"),
    [((0, 8), (4, 8)), ((2, 0, 8), (4, 8)), ((3, 8), (0, 8)), ((3, 0), (4, 0))],
)
def test_sizes_of_zero(op: Any, x_shape: tuple[int, ...], weight_shape: tuple[int, int]):
    x, weight, bias = randoms(*x_shape), randoms(*weight_shape), randoms(weight_shape[0])
    assert torch.equal(op(x, weight, bias), reference(x, weight, bias))


def test_values_that_are_not_numbers_stay_where_they_are(op: Any):
    x, weight = randoms(3, 33), randoms(5, 33)
    x[1, 32], weight[4, 32] = float("nan"), float("inf")
    y = op(x, weight, None)
    assert y[1].isnan().all()
    assert not y[[0, 2], 4].isfinite().any()
    assert y[[0, 2], :4].isfinite().all()


X, WEIGHT = randoms(3, 8), randoms(4, 8)
WRONG = {
    "another K": (randoms(3, 9), WEIGHT, None),
    "x without dimensions": (torch.tensor(1.0), WEIGHT, None),
    "weight of three dimensions": (X, randoms(2, 4, 8), None),
    "bias of another size": (X, WEIGHT, randoms(3)),
    "bias of two dimensions": (X, WEIGHT, randoms(4, 1)),
    "16-bit x": (X.bfloat16(), WEIGHT, None),
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_refused_when_run_and_when_traced(op: Any, arguments: tuple[Any, ...]):
    with pytest.raises(ValueError, match=r"nxdi_cpu::linear: .*must be"):
        op(*arguments)
    with pytest.raises(ShapeError, match=r"linear: .*must be"):
        op(*(None if tensor is None else tensor.to("meta") for tensor in arguments))


def test_weights_that_cannot_be_streamed_are_refused(op: Any):
    with pytest.raises(ValueError, match=r"rows of weight must be contiguous; use .contiguous\(\)"):
        op(X, randoms(8, 4).T, None)
    with pytest.raises(ValueError, match="must be float32, bfloat16 or float16"):
        op(X, WEIGHT.double(), None)
    with pytest.raises(ValueError, match="must be float32, bfloat16 or float16"):
        op(X, WEIGHT, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 3, 20, 130])
def test_several_weights_give_the_bits_of_separate_calls(
    op: Any, num_rows: int, dtype: torch.dtype
):
    x = randoms(num_rows, 300)
    weights = [randoms(n, 300, dtype=dtype) for n in (70, 1, 33)]
    biases = [None, randoms(1), randoms(33, dtype=dtype)]
    operands = [operand for pair in zip(weights, biases, strict=True) for operand in pair]
    alone = [op(x, *pair) for pair in zip(weights, biases, strict=True)]
    assert torch.equal(op(x, *operands), torch.cat(alone, dim=-1))
    assert torch.equal(op(x, *operands[:4]), torch.cat(alone[:2], dim=-1))
    traced = op(*(None if t is None else t.to("meta") for t in (x, *operands)))
    assert traced.shape == (num_rows, 104)


def test_weights_of_one_call_have_one_dtype(op: Any):
    with pytest.raises(ValueError, match="must be of one dtype; call once for each"):
        op(X, WEIGHT, None, WEIGHT.half())


def test_every_further_weight_is_checked(op: Any):
    for operands in ((WEIGHT, None, randoms(4, 9)), (WEIGHT, None, WEIGHT, randoms(3))):
        with pytest.raises(ValueError, match=r"nxdi_cpu::linear: .*must be"):
            op(X, *operands)
        with pytest.raises(ShapeError, match=r"linear: .*must be"):
            op(*(None if tensor is None else tensor.to("meta") for tensor in (X, *operands)))


class TwoLinears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(randoms(50, 24, dtype=torch.bfloat16), requires_grad=False)
        self.bias = nn.Parameter(randoms(50), requires_grad=False)
        self.down = nn.Parameter(randoms(24, 50), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        op = load_linear_op()
        hidden: Tensor = op(x, self.up, self.bias)
        return x + op(torch.relu(hidden), self.down, None)


def test_a_compiled_graph_calls_it_directly_and_gives_the_same(op: Any, tmp_path: Path):
    model, x = TwoLinears(), randoms(2, 3, 24)
    program = torch.export.export(model, (x,), strict=False)
    package = torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(tmp_path / "model.pt2"),
        inductor_configs={
            "aot_inductor.custom_ops_to_c_shims": {op: [LINEAR_C_SHIM]},
            "aot_inductor.compile_wrapper_opt_level": "O0",
        },
    )
    with zipfile.ZipFile(package) as files:
        sources = [files.read(name) for name in files.namelist() if name.endswith(".cpp")]
    assert (
        sum(source.count(b"aoti_torch_cpu_linear(") for source in sources) == 3
    )  # declared, called
    run = torch._inductor.aoti_load_package(package)
    assert torch.equal(run(x), model(x))

"""Which kernel each linear of a graph gets, and which of them become one call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule

from nxdi.kernels.cpu.linear import load_linear_op
from nxdi.kernels.cpu.onednn import onednn_linear
from nxdi.runtime.backends.cpu.linear import LINEAR_KERNEL, use_linear_kernels

Function = Callable[..., tuple[Tensor, ...]]


class Graph(torch.nn.Module):
    """A function as a module, for export."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.function(*tensors)


def exported(function: Function, *arguments: Tensor) -> GraphModule:
    with torch.no_grad():
        graph = torch.export.export(Graph(function), arguments, strict=False).module()
    assert isinstance(graph, GraphModule)
    return graph


def num_calls(graph: GraphModule, target: object) -> int:
    return sum(node.target is target for node in graph.graph.nodes)


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


X = rand(2, 1, 24)


def check(function: Function, *arguments: Tensor, calls: int) -> None:
    """The graph keeps its results, to the rounding of a product, with so many kernel calls."""
    graph = exported(function, *arguments)
    choices = use_linear_kernels(graph, {})
    assert {choice.chosen for choice in choices} == {LINEAR_KERNEL}
    assert num_calls(graph, torch.ops.aten.linear.default) == 0
    assert num_calls(graph, load_linear_op()) == calls
    torch.testing.assert_close(graph(*arguments), function(*arguments))


@pytest.mark.parametrize(("num_weights", "calls"), [(1, 1), (2, 1), (3, 1), (4, 2), (7, 3)])
def test_linears_of_the_same_activations_are_one_call_of_up_to_three(num_weights: int, calls: int):
    weights = [rand(8 + i, 24) for i in range(num_weights)]

    def function(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        x = x.relu()
        return tuple(F.linear(x, weight) for weight in weights)

    check(function, X, *weights, calls=calls)


def test_biases_and_casts_of_weights_go_with_them():
    def function(x: Tensor, first: Tensor, second: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return F.linear(x, first.float()), F.linear(x, second.float(), bias.float())

    half = torch.bfloat16
    check(
        function, X, rand(8, 24, dtype=half), rand(9, 24, dtype=half), rand(9, dtype=half), calls=1
    )


def test_a_write_in_place_stands_between_linears():
    def function(x: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        x = x + 1
        before = F.linear(x, first)
        x.view(-1).mul_(2)
        return before, F.linear(x, second)

    check(function, X, rand(8, 24), rand(9, 24), calls=2)


@pytest.mark.parametrize("case", ["activations", "dtypes", "a weight that is computed"])
def test_linears_that_one_call_cannot_serve_stay_apart(case: str):
    def function(x: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        y = x + 1 if case == "activations" else x
        second = 2 * second if case == "a weight that is computed" else second
        return F.linear(x, first.float()), F.linear(y, second.float())

    dtype = torch.float16 if case == "dtypes" else torch.float32
    check(function, X, rand(8, 24), rand(9, 24, dtype=dtype), calls=2)


def test_many_rows_go_to_onednn_and_stay_apart():
    def function(x: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        return F.linear(x, first), F.linear(x, second)

    graph = exported(function, rand(300, 24), rand(8, 24), rand(9, 24))
    (choice,) = use_linear_kernels(graph, {})
    assert choice.chosen == "nxdi::onednn_linear"
    assert num_calls(graph, onednn_linear) == 2


def test_activations_that_are_not_float32_keep_torchs_linear():
    graph = exported(lambda x, w: (F.linear(x, w),), X.bfloat16(), rand(8, 24).bfloat16())
    (choice,) = use_linear_kernels(graph, {"w": "mlp.up_proj"})
    assert choice.chosen == "aten::linear"
    assert choice.is_reference
    assert [name for name, _ in choice.refused] == ["nxdi::onednn_linear", LINEAR_KERNEL]
    assert num_calls(graph, torch.ops.aten.linear.default) == 1

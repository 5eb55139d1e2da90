from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nxdi.kernels import simulate
from nxdi.kernels.sim.ops import OPS
from sim_kernels import nisa, nl, random_array, stored
from tolerances import SUM_ORDER_FP32

REFERENCES: dict[str, Any] = {
    "exp": torch.exp,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "erf": torch.erf,
    "sin": torch.sin,
    "square": torch.square,
    "abs": torch.abs,
    "sign": torch.sign,
    "softplus": torch.nn.functional.softplus,
    "silu": torch.nn.functional.silu,
    "mish": torch.nn.functional.mish,
    "gelu": torch.nn.functional.gelu,
    "gelu_apprx_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "gelu_apprx_sigmoid": lambda x: x * torch.sigmoid(1.702 * x),
    "log": lambda x: torch.log(x.abs() + 0.1),
    "sqrt": lambda x: torch.sqrt(x.abs() + 0.1),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 0.1),
}
POSITIVE = ("log", "sqrt", "rsqrt")


@pytest.mark.parametrize("op", REFERENCES)
def test_functions(op: str) -> None:
    def kernel(x: Any) -> Any:
        return stored(getattr(nl, op)(nl.load(x)))

    x = torch.from_numpy(random_array(8, 64)).clamp(-3, 3)
    given = x.abs() + 0.1 if op in POSITIVE else x
    assert (simulate(kernel)(given) - REFERENCES[op](x)).abs().max() < SUM_ORDER_FP32


@pytest.mark.parametrize("op", ["gelu", "silu", "erf", "gelu_apprx_sigmoid"])
def test_slopes_are_derivatives(op: str) -> None:
    x = torch.from_numpy(random_array(64)).requires_grad_()
    REFERENCES[op](x).sum().backward()
    assert x.grad is not None
    slope = OPS[f"{op}_dx"].compute(x.detach().numpy())
    assert np.abs(slope - x.grad.numpy()).max() < SUM_ORDER_FP32


def test_scale_bias_and_sum_in_one_pass() -> None:
    def kernel(x: Any, scale: Any, bias: Any) -> Any:
        result, total = nl.ndarray(x.shape, nl.bfloat16), nl.ndarray((8, 1), nl.float32)
        nisa.activation(
            result,
            nl.exp,
            nl.load(x),
            bias=nl.load(bias),
            scale=nl.load(scale),
            reduce_op=nl.add,
            reduce_res=total,
            reduce_cmd=nisa.reduce_cmd.reset_reduce,
        )
        return stored(total)

    x, scale, bias = random_array(8, 16), random_array(8, 1, seed=1), random_array(8, 1, seed=2)
    expected = np.exp(x * scale + bias).sum(axis=1, keepdims=True)
    # The sum is of float32 values, not of the bfloat16 ones that are stored.
    assert np.allclose(simulate(kernel)(x, scale, bias), expected, rtol=SUM_ORDER_FP32)


def test_a_sum_over_several_activations() -> None:
    def kernel(x: Any) -> Any:
        tile, total = nl.load(x), nl.ndarray((8, 1), nl.float32)
        for part in range(2):
            half = tile[:, nl.ds(part * 8, 8)]
            first = nisa.reduce_cmd.reset_reduce
            cmd = nisa.reduce_cmd.reduce if part else first
            nisa.activation(half, nl.copy, half, reduce_op=nl.add, reduce_cmd=cmd)
        nisa.activation(tile, nl.copy, tile, reduce_op=nl.add, reduce_res=total)
        return stored(total)

    x = random_array(8, 16)
    expected = x.sum(axis=1, keepdims=True)
    assert np.abs(simulate(kernel)(x) - expected).max() < SUM_ORDER_FP32


def test_reduce_res_may_be_a_part_of_dst() -> None:
    def kernel(x: Any) -> Any:
        tile = nl.load(x)
        nisa.activation_reduce(tile, nl.copy, tile, nl.add, tile[:, 0:1])
        return stored(tile)

    x = np.ones((4, 8), np.float32)
    assert simulate(kernel)(x)[0].tolist() == [8] + [1] * 7


@pytest.mark.parametrize(
    ("op0", "op1", "reverse0", "expected"),
    [
        ("multiply", "add", False, lambda x: 2 * x + 3),
        ("multiply", "subtract", False, lambda x: 2 * x - 3),
        ("subtract", "bypass", True, lambda x: 2 - x),
        ("add", "bypass", False, lambda x: x + 2),
        ("bypass", "bypass", True, lambda x: x),
    ],
)
def test_activate2_computes_before_the_activation(
    op0: str, op1: str, reverse0: bool, expected: Any
) -> None:
    def kernel(x: Any) -> Any:
        tile, most = nl.load(x), nl.ndarray((8, 1), nl.float32)
        nisa.activate2(
            *(tile, nl.prelu, tile, 2.0, 3.0, getattr(nl, op0), getattr(nl, op1), 0.5),
            reverse0=reverse0,
            reduce_op=nl.maximum,
            reduce_res=most,
            reduce_cmd=nisa.reduce_cmd.reset_reduce,
        )
        return stored(tile), stored(most)

    x = random_array(8, 64)
    argument = expected(x)
    result, most = simulate(kernel, target="gen4")(x)
    exact = np.where(argument > 0, argument, argument / 2)
    assert np.abs(result - exact).max() < SUM_ORDER_FP32
    assert np.array_equal(most[:, 0], result.max(axis=1))

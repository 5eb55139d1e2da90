from __future__ import annotations

from random import Random

import pytest
import torch

from nki_calls import GENERATIONS, Drawn, check_drawn, check_portable, normal
from nxdi.kernels import simulate
from nxdi.kernels.nki import load_kernels
from tolerances import NKI

kernels = load_kernels("router_topk")
BF16 = torch.bfloat16


def draw(random: Random) -> Drawn:
    rows, hidden = random.choice([1, 6, 128, 130]), 128 * random.randint(1, 2)
    num_experts = random.choice([2, 7, 8, 33, 64])
    top_k = random.randint(1, min(8, num_experts))
    dtype = random.choice([torch.bfloat16, torch.float16, torch.float32])
    x = normal(random, rows, hidden, dtype=dtype)
    w = normal(random, num_experts, hidden, dtype=dtype, scale=2 * hidden**-0.5)
    act = random.choice(["softmax", "sigmoid"])
    options = {"top_k": top_k, "act": act, "normalize": random.random() < 0.5}
    call = kernels.Call(tuple(x.shape), tuple(w.shape), dtype, top_k, act)
    # Products of 16 bits are exact in float32, so all dtypes are as near.
    return Drawn(call, (x, w), NKI[torch.float32], options)


@pytest.mark.parametrize("target", GENERATIONS)
def test_it_equals_its_reference(target: str) -> None:
    check_drawn(kernels, kernels.router_topk, draw, target)


def test_the_first_of_equal_experts_is_chosen() -> None:
    x, w = torch.ones(1, 128), torch.zeros(16, 128)
    w[[3, 9, 12]] = 1
    weights, experts = simulate(kernels.router_topk)(x, w, top_k=2)
    assert experts.tolist() == [[3, 9]]
    assert weights.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (kernels.Call((4, 128), (64, 256), BF16, 2), "no [T, H]"),
        (kernels.Call((4, 100), (64, 100), BF16, 2), "no multiple"),
        (kernels.Call((4, 128), (600, 128), BF16, 2), "more than 512"),
        (kernels.Call((4, 128), (64, 128), BF16, 9), "up to 8"),
        (kernels.Call((4, 128), (4, 128), BF16, 5), "of 4 experts"),
        (kernels.Call((4, 128), (64, 128), BF16, 2, "tanh"), "'tanh'"),
        (kernels.Call((4, 128), (64, 128), torch.int8, 2), "no float"),
        (kernels.Call((4, 16384), (512, 16384), BF16, 2), "do not fit"),
    ],
)
def test_it_says_what_it_does_not_serve(call: object, reason: str) -> None:
    assert reason in kernels.supports(call)


def test_it_is_portable() -> None:
    check_portable(kernels)

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

from nki_calls import GENERATIONS, Drawn, check_drawn, check_portable, normal
from nxdi.kernels import simulate
from nxdi.kernels.nki import load_kernels
from tolerances import NKI

kernels = load_kernels("qkv")
BF16 = torch.bfloat16


def draw(random: Random) -> Drawn:
    """With and without each option, independently."""
    rows, hidden = random.choice([1, 7, 128, 130, 257]), 128 * random.randint(1, 2)
    num_kv_heads, head_dim = random.randint(1, 2), random.choice([6, 16, 80, 160])
    num_q_heads = num_kv_heads * random.randint(1, 3)
    columns = (num_q_heads + 2 * num_kv_heads) * head_dim
    dtype = random.choice([torch.bfloat16, torch.float16, torch.float32])
    x = normal(random, rows, hidden, dtype=dtype)
    w = normal(random, hidden, columns, dtype=dtype, scale=hidden**-0.5)
    options: dict[str, Any] = {"num_q_heads": num_q_heads, "num_kv_heads": num_kv_heads}
    if random.random() < 0.5:
        options["bias"] = normal(random, 1, columns, dtype=dtype)
    if random.random() < 0.5:
        options["gamma"] = normal(random, 1, hidden, dtype=dtype)
    rotary_dim = random.choice([0, 2, head_dim])
    if rotary_dim:
        angles = normal(random, rows, rotary_dim // 2, scale=10).repeat(1, 2)
        options |= {"cos": angles.cos().to(dtype), "sin": angles.sin().to(dtype)}
    shapes = tuple(x.shape), tuple(w.shape)
    call = kernels.Call(*shapes, dtype, num_q_heads, num_kv_heads, rotary_dim)
    return Drawn(call, (x, w), NKI[dtype], options)


@pytest.mark.parametrize("target", GENERATIONS)
def test_it_equals_its_reference(target: str) -> None:
    check_drawn(kernels, kernels.qkv, draw, target)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (kernels.Call((4, 128), (256, 64), BF16, 2, 1), "no [T, H]"),
        (kernels.Call((4, 128), (128, 62), BF16, 2, 1), "no 4 heads"),
        (kernels.Call((4, 128), (128, 2400), BF16, 2, 1), "of up to 512"),
        (kernels.Call((4, 128), (128, 64), BF16, 2, 1, 3), "in pairs"),
        (kernels.Call((4, 100), (100, 64), BF16, 2, 1), "no multiple"),
        (kernels.Call((4, 128), (128, 64), torch.int8, 2, 1), "no float"),
        (kernels.Call((4, 16384), (16384, 64), BF16, 2, 1), "do not fit"),
    ],
)
def test_it_says_what_it_does_not_serve(call: object, reason: str) -> None:
    assert reason in kernels.supports(call)


def test_the_widest_rows_it_serves_fit_every_machine() -> None:
    def call(hidden: int) -> Any:
        return kernels.Call((512, hidden), (hidden, 6144), BF16, 32, 8, 128)

    hidden = max(size for size in range(128, 16384, 128) if kernels.supports(call(size)) is None)
    empty = torch.empty(512, hidden, dtype=BF16, device="meta")
    angles = empty[:, :128]
    simulation = simulate(kernels.qkv, target="gen2", numerics="shapes")
    simulation(
        *(empty, empty.new_empty(hidden, 6144), 32, 8),
        **{"bias": empty.new_empty(1, 6144), "gamma": empty[:1], "cos": angles, "sin": angles},
    )
    assert hidden >= 7168


def test_it_is_portable() -> None:
    check_portable(kernels)

from __future__ import annotations

from dataclasses import replace
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
    q_size, kv_size = num_q_heads * head_dim, num_kv_heads * head_dim
    dtype = random.choice([torch.bfloat16, torch.float16, torch.float32])
    x = normal(random, rows, hidden, dtype=dtype)
    weights = [
        normal(random, hidden, size, dtype=dtype, scale=hidden**-0.5)
        for size in (q_size, kv_size, kv_size)
    ]
    options: dict[str, Any] = {"head_dim": head_dim}
    if random.random() < 0.5:
        options["bias"] = normal(random, 1, q_size + 2 * kv_size, dtype=dtype)
    if random.random() < 0.5:
        options["gamma"] = normal(random, 1, hidden, dtype=dtype)
    rotary_dim = random.choice([0, 2, head_dim])
    if rotary_dim:
        angles = normal(random, rows, rotary_dim // 2, scale=10).repeat(1, 2)
        options |= {"cos": angles.cos().to(dtype), "sin": angles.sin().to(dtype)}
    shapes = [tuple(tensor.shape) for tensor in (x, *weights[:2])]
    call = kernels.Call(*shapes, dtype, head_dim, rotary_dim)
    return Drawn(call, (x, *weights), NKI[dtype], options)


@pytest.mark.parametrize("target", GENERATIONS)
def test_it_equals_its_reference(target: str) -> None:
    check_drawn(kernels, kernels.qkv, draw, target)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x_shape": (1, 4, 128)}, "takes [T, H]"),
        ({"q_shape": (256, 64)}, "takes [T, H]"),
        ({"k_shape": (256, 32)}, "takes [T, H]"),
        ({"q_shape": (128, 62)}, "no heads of 32"),
        ({"k_shape": (128, 31)}, "no heads of 32"),
        ({"q_shape": (128, 600), "k_shape": (128, 600), "head_dim": 600}, "<= 512"),
        ({"rotary_dim": 3}, "in pairs"),
        ({"x_shape": (4, 100), "q_shape": (100, 64), "k_shape": (100, 32)}, "no multiple"),
        ({"dtype": torch.int8}, "no float"),
        ({"x_shape": (4, 16384), "q_shape": (16384, 64), "k_shape": (16384, 32)}, "do not fit"),
    ],
)
def test_it_says_what_it_does_not_serve(change: dict[str, Any], reason: str) -> None:
    call = kernels.Call((4, 128), (128, 64), (128, 32), BF16, 32)
    assert kernels.supports(call) is None
    assert reason in kernels.supports(replace(call, **change))


def test_the_widest_rows_it_serves_fit_every_machine() -> None:
    def call(hidden: int) -> Any:
        return kernels.Call((512, hidden), (hidden, 4096), (hidden, 1024), BF16, 128, 128)

    hidden = max(size for size in range(128, 16384, 128) if kernels.supports(call(size)) is None)
    empty = torch.empty(512, hidden, dtype=BF16, device="meta")
    weights = [empty.new_empty(hidden, size) for size in (4096, 1024, 1024)]
    angles = empty[:, :128]
    simulation = simulate(kernels.qkv, target="gen2", numerics="shapes")
    simulation(
        *(empty, *weights, 128),
        **{"bias": empty.new_empty(1, 6144), "gamma": empty[:1], "cos": angles, "sin": angles},
    )
    assert hidden >= 7168


def test_narrow_weights_keep_decoding_bound_by_memory() -> None:
    """One key/value head on a rank: rows of 256 bytes."""
    x = torch.empty(1, 4096, dtype=BF16, device="meta")
    weights = [x.new_empty(4096, size) for size in (1024, 128, 128)]
    simulation = simulate(kernels.qkv, numerics="shapes")
    simulation(x, *weights, 128)
    report = simulation.report()
    assert report.bound_by == "dma"
    assert report.dma_gb_per_s >= 0.7 * report.memory_gb_per_s


def test_it_is_portable() -> None:
    check_portable(kernels)

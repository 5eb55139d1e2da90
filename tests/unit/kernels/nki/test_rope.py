from __future__ import annotations

from random import Random

import pytest
import torch

from nki_calls import GENERATIONS, Drawn, check_drawn, check_portable, normal
from nxdi.kernels import simulate
from nxdi.kernels.nki import load_kernels
from nxdi.modules.rope import apply_rotary
from tolerances import NKI

kernels = load_kernels("rope")
BF16 = torch.bfloat16


def draw(random: Random) -> Drawn:
    rows, head_dim = random.choice([1, 5, 128, 130]), random.randint(2, 48)
    rotary_dim = 2 * random.randint(1, head_dim // 2)
    dtype = random.choice([torch.bfloat16, torch.float16, torch.float32])
    q, k = (normal(random, rows, random.randint(1, 4), head_dim, dtype=dtype) for _ in range(2))
    angles = normal(random, rows, rotary_dim // 2, scale=10).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    call = kernels.Call(tuple(q.shape), tuple(k.shape), tuple(cos.shape), dtype)
    return Drawn(call, (q, k, cos, sin), NKI[dtype])


@pytest.mark.parametrize("target", GENERATIONS)
def test_it_equals_its_reference(target: str) -> None:
    check_drawn(kernels, kernels.rope, draw, target)


def test_it_turns_as_the_models_do() -> None:
    q, k = normal(Random(0), 9, 3, 16), normal(Random(1), 9, 1, 16)
    angles = normal(Random(2), 9, 8).repeat(1, 2)
    turned, _ = simulate(kernels.rope)(q, k, angles.cos(), angles.sin())
    expected = apply_rotary(q.transpose(0, 1)[None], angles.cos()[None], angles.sin()[None])
    torch.testing.assert_close(
        turned.transpose(0, 1)[None], expected, rtol=0, atol=NKI[torch.float32]
    )


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (kernels.Call((4, 8), (4, 1, 8), (4, 8), BF16), "the kernel takes"),
        (kernels.Call((4, 2, 8), (4, 1, 8), (5, 8), BF16), "the kernel takes"),
        (kernels.Call((4, 2, 8), (4, 1, 4), (4, 4), BF16), "those of k"),
        (kernels.Call((4, 2, 8), (4, 1, 8), (4, 7), BF16), "in pairs"),
        (kernels.Call((4, 2, 8), (4, 1, 8), (4, 16), BF16), "in pairs"),
        (kernels.Call((4, 2, 8), (4, 1, 8), (4, 8), torch.int8), "no float"),
        (kernels.Call((4, 256, 128), (4, 1, 128), (4, 128), BF16), "do not fit"),
    ],
)
def test_it_says_what_it_does_not_serve(call: object, reason: str) -> None:
    assert reason in kernels.supports(call)


def test_it_is_portable() -> None:
    check_portable(kernels)

from __future__ import annotations

from random import Random

import pytest
import torch

from nki_calls import GENERATIONS, Drawn, check_drawn, check_portable, normal
from nxdi.kernels import simulate
from nxdi.kernels.nki import load_kernels

kernels = load_kernels("sampling")


def draw(random: Random) -> Drawn:
    rows, vocabulary = random.choice([1, 2, 5, 64, 130]), random.choice([8, 40, 101, 600, 1000])
    dtype = random.choice([torch.bfloat16, torch.float32])
    logits = normal(random, rows, vocabulary, dtype=dtype)
    top_k = random.choice([1, 1, 2, 8, 9, 40])
    top_k = min(top_k, vocabulary // 8 * 8)
    call = kernels.Call(tuple(logits.shape), dtype, top_k)
    return Drawn(call, (logits,), 0.0, {"top_k": top_k})


@pytest.mark.parametrize("target", GENERATIONS)
def test_it_equals_its_reference(target: str) -> None:
    check_drawn(kernels, kernels.sampling, draw, target)


@pytest.mark.parametrize(("rows", "vocabulary", "top_k"), [(1, 40009, 16), (3, 262144, 1)])
def test_it_searches_a_large_vocabulary(rows: int, vocabulary: int, top_k: int) -> None:
    logits = normal(Random(0), rows, vocabulary)
    values, places = simulate(kernels.sampling)(logits, top_k=top_k)
    expected, where = kernels.reference(logits, top_k)
    assert torch.equal(values, expected)
    assert torch.equal(places, where)


@pytest.mark.parametrize("top_k", [1, 3, 20])
def test_of_equal_logits_the_first_is_taken(top_k: int) -> None:
    logits = torch.zeros(2, 512)
    logits[0, 300:] = 1
    _, places = simulate(kernels.sampling)(logits, top_k=top_k)
    assert places.tolist() == [[*range(300, 300 + top_k)], [*range(top_k)]]


def test_few_rows_use_many_partitions() -> None:
    assert kernels.count_stages(1, 151936, 8) == 128
    assert kernels.count_stages(8, 151936, 8) == 16
    assert kernels.count_stages(1, 131072, 256) == 16  # 8192 elements, then 4096
    assert kernels.count_stages(1, 50257, 8) == 29
    assert kernels.count_stages(300, 151936, 8) == 1


def test_what_it_holds_fits_every_machine() -> None:
    simulation = simulate(kernels.sampling, target="gen2", numerics="shapes")
    simulation(torch.empty(128, 2**18, device="meta"), top_k=256)
    simulation(torch.empty(1, 2**18, device="meta"), top_k=256)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (kernels.Call((4,), torch.float32), "the kernel takes"),
        (kernels.Call((4, 7), torch.float32), "is not one of 8"),
        (kernels.Call((4, 2**18 + 1), torch.float32), "is not one of 8"),
        (kernels.Call((4, 20), torch.float32, 17), "whole eights"),
        (kernels.Call((4, 1000), torch.float32, 257), "up to 256"),
        (kernels.Call((4, 20), torch.float16), "neither"),
    ],
)
def test_it_says_what_it_does_not_serve(call: object, reason: str) -> None:
    assert reason in kernels.supports(call)


def test_it_is_portable() -> None:
    check_portable(kernels)

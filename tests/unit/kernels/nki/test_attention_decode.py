from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from nxdi.kernels import lint, simulate
from nxdi.kernels.masks import Causal
from nxdi.kernels.nki import load_kernels
from nxdi.kernels.ops import AttendCall
from tolerances import NKI_BF16, NKI_FP8, NKI_FP32

kernels = load_kernels("attention_decode")
FLOAT8 = torch.float8_e4m3fn
PARTS = [
    "stacked",
    "make_constants",
    "make_fold",
    "spread",
    "load_queries",
    "score",
    "keys_at_once",
    "turn_keys",
    "multiply",
    "normalise",
    "invert",
    "find_highest",
    "weigh",
    "add_values",
    "store",
    "plan_cache",
    "as_stored",
    "bytes_of",
    "load_row",
    "load_part",
    "copy_out",
]


@dataclass(frozen=True)
class Draw:
    """Sizes of one call: shape B, N, G, S, L, D; block_size: 0 for a flat cache."""

    shape: tuple[int, int, int, int, int, int]
    block_size: int
    has_sinks: bool
    dtype: torch.dtype
    kv_dtype: torch.dtype
    target: str

    def call(self) -> Any:
        _, heads, group, num_queries, num_keys, size = self.shape
        sizes = heads, group, num_queries, num_keys, size, size
        attend = AttendCall(
            *sizes, self.dtype, Causal(), size**-0.5, None, self.has_sinks, aligned=False
        )
        return kernels.Call(attend, self.kv_dtype, self.block_size, int(self.target[-1]))

    def arguments(self) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(0)
        batch, heads, group, num_queries, num_keys, size = self.shape

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        allowed = (draw(batch, num_queries, num_keys) > -0.5).to(torch.uint8)
        allowed[..., 0] = 1
        cache, blocks = (batch, heads, num_keys, size), None
        if self.block_size:
            each = num_keys // self.block_size
            cache = (batch * each + 3, heads, self.block_size, size)
            order = torch.randperm(cache[0], generator=generator)
            blocks = order[: batch * each].view(batch, each).int()
        scales = draw(2, heads).abs() + 0.5 if self.kv_dtype is not self.dtype else None
        return (
            draw(batch, heads, group, num_queries, size).to(self.dtype),
            (draw(*cache) * 2).to(self.kv_dtype),
            draw(*cache).to(self.kv_dtype),
            allowed,
            blocks,
            (draw(heads, group) * 3).to(self.dtype) if self.has_sinks else None,
            scales,
            size**-0.5,
        )


def drawn(number: int) -> list[Draw]:
    """Calls of every generation and dtype; sizes are mostly ragged."""
    choice = random.Random(0)
    dtypes = [
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.bfloat16, FLOAT8),
        (torch.float16, torch.float8_e5m2),
    ]
    found = []
    for at in range(number):
        target = ("gen2", "gen3", "gen4")[at % 3]
        block_size = choice.choice([0, 8, 16]) if target != "gen2" else 0
        num_keys = choice.choice([1, 5, 60, 128, 130, 300, 517])
        if block_size:
            num_keys = choice.choice([1, 3, 20, 140 if block_size == 8 else 40]) * block_size
        sizes = (choice.choice([1, 2, 3]), choice.choice([1, 2]), choice.choice([1, 3, 8]))
        sizes += (choice.choice([1, 1, 1, 4]), num_keys)
        size = choice.choice([16, 32, 64, 80, 128])
        found.append(
            Draw((*sizes, size), block_size, choice.random() < 0.4, *dtypes[at % 4], target)
        )
    return found


def check(draw: Draw) -> None:
    assert kernels.supports(draw.call()) is None
    arguments = draw.arguments()
    result = simulate(kernels.attention_decode, target=draw.target)(*arguments)
    expected = kernels.reference(*arguments)
    bound = NKI_FP32 if draw.dtype is torch.float32 else NKI_BF16
    bound = NKI_FP8 if draw.kv_dtype.itemsize == 1 else bound
    assert (result.float() - expected.float()).abs().max() <= bound * expected.float().abs().max()


@pytest.mark.parametrize("draw", drawn(60))
def test_it_equals_its_reference(draw: Draw) -> None:
    check(draw)


CALL = Draw((1, 1, 4, 1, 256, 64), 0, False, torch.bfloat16, torch.bfloat16, "gen3").call()


@pytest.mark.parametrize(
    ("change", "of_call", "reason"),
    [
        ({"group_size": 129}, {}, "129 queries"),
        ({"head_dim": 192}, {}, "not one size"),
        ({"value_dim": 32}, {}, "not one size"),
        ({"softcap": 1.0}, {}, "soft-capped"),
        ({"dtype": torch.int8}, {}, "no float of 16 or 32"),
        ({"dtype": torch.float32}, {"kv_dtype": FLOAT8}, "for queries of torch.float32"),
        ({}, {"kv_dtype": torch.float32}, "a cache of torch.float32"),
        ({}, {"block_size": 16, "generation": 2}, "cannot gather"),
        ({}, {"block_size": 128}, "bytes of a head"),
        ({"num_keys": 1 << 20}, {}, "do not fit"),
    ],
)
def test_it_says_what_it_does_not_serve(
    change: dict[str, Any], of_call: dict[str, Any], reason: str
) -> None:
    assert kernels.supports(CALL) is None
    call = replace(CALL, attend=replace(CALL.attend, **change), **of_call)
    assert reason in kernels.supports(call)


def report_of(shape: tuple[int, ...], block_size: int = 0, kv: Any = torch.bfloat16) -> Any:
    batch, heads, group, num_keys, size = shape
    simulation = simulate(kernels.attention_decode, numerics="shapes")

    def empty(*sizes: int, dtype: Any = torch.bfloat16) -> torch.Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    cache, blocks = empty(batch, heads, num_keys, size, dtype=kv), None
    if block_size:
        each = num_keys // block_size
        cache = empty(batch * each, heads, block_size, size, dtype=kv)
        blocks = empty(batch, each, dtype=torch.int32)
    allowed = empty(batch, 1, num_keys, dtype=torch.uint8)
    simulation(empty(batch, heads, group, 1, size), cache, cache, allowed, blocks)
    return simulation.report()


@pytest.mark.parametrize("block_size", [0, 32])
def test_it_moves_memory_at_85_percent_of_the_rate(block_size: int) -> None:
    report = report_of((8, 1, 8, 8192, 128), block_size)
    assert report.bound_by == "dma"
    assert report.dma_gb_per_s >= 0.85 * report.memory_gb_per_s


def test_stacked_keys_share_products() -> None:
    """Of two keys of 64, so that the tensor engine has time to spare."""
    report = report_of((8, 1, 8, 8192, 64))
    assert report.bound_by == "dma"
    assert report.dma_gb_per_s >= 0.75 * report.memory_gb_per_s


@pytest.mark.slow
def test_the_longest_cache_it_serves_fits_the_smallest_machine() -> None:
    def attend(num_keys: int) -> Any:
        sizes = {"num_keys": num_keys, "group_size": 8, "head_dim": 128, "value_dim": 128}
        return replace(CALL, attend=replace(CALL.attend, **sizes))

    num_keys = 1 << 16
    while kernels.supports(attend(num_keys + (1 << 14))) is None:
        num_keys += 1 << 14
    assert num_keys >= 1 << 17
    simulation = simulate(kernels.attention_decode, target="gen2", numerics="shapes")
    q = torch.empty(1, 2, 8, 1, 128, dtype=torch.bfloat16, device="meta")
    k = torch.empty(1, 2, num_keys, 128, dtype=torch.bfloat16, device="meta")
    simulation(q, k, k, torch.empty(1, 1, num_keys, dtype=torch.uint8, device="meta"))


def test_it_is_portable() -> None:
    functions = [kernels.attention_decode]
    for name in PARTS:
        function = getattr(kernels, name, None) or kernels.load_part.__globals__.get(name)
        functions.append(function or kernels.normalise.__globals__[name])
    assert [finding for function in functions for finding in lint(function)] == []

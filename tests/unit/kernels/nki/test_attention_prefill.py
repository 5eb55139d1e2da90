from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from nxdi.kernels import lint, measure_coverage, simulate
from nxdi.kernels.masks import Causal, Chunked, SlidingWindow
from nxdi.kernels.nki import load_kernels
from nxdi.kernels.ops import AttendCall
from tolerances import NKI_BF16, NKI_FP32

kernels = load_kernels("attention_prefill")
PARTS = [
    "plan_spans",
    "attend_heads",
    "make_mask",
    "load_span",
    "load_rows",
    "load_queries",
    "score",
    "hide_later",
    "hide_earlier",
    "add_mask",
    "exponentials",
    "turn_weights",
    "weigh",
    "add_shrunk",
    "store",
]


@dataclass(frozen=True)
class Draw:
    """Sizes of one call: shape B, N, G, S, L, D."""

    shape: tuple[int, int, int, int, int, int]
    window: int
    has_sinks: bool
    dtype: torch.dtype
    target: str

    def call(self) -> AttendCall:
        _, heads, group, num_queries, num_keys, size = self.shape
        mask = SlidingWindow(self.window) if self.window else Causal()
        sizes = heads, group, num_queries, num_keys, size, size
        return AttendCall(*sizes, self.dtype, mask, size**-0.5, None, self.has_sinks, True)

    def arguments(self) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(0)
        batch, heads, group, num_queries, num_keys, size = self.shape

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(self.dtype)

        q = draw(batch, heads, group, num_queries, size)
        k, v = draw(batch, heads, num_keys, size), draw(batch, heads, num_keys, size)
        sinks = draw(heads, group) * 3 if self.has_sinks else None
        return q, k, v, sinks, size**-0.5, self.window


def drawn(number: int) -> list[Draw]:
    """Calls of every generation and dtype; sizes are mostly ragged."""
    choice = random.Random(0)
    found = []
    for at in range(number):
        num_queries = choice.choice([1, 7, 64, 128, 129, 200, 257])
        past = choice.choice([0, 0, 1, 100, 128, 300])
        heads, size = choice.choice([(1, 1), (1, 2), (2, 1)]), choice.choice([8, 16, 40, 64, 128])
        found.append(
            Draw(
                (1, *heads, num_queries, num_queries + past, size),
                choice.choice([0, 0, 1, 5, 100, 128, 200]),
                choice.random() < 0.4,
                (torch.bfloat16, torch.float32)[at % 2],
                ("gen2", "gen3", "gen4")[at % 3],
            )
        )
    return found


LONG = [  # several spans of keys; and a window that leaves out the first
    Draw((2, 1, 1, 40, 1100, 16), 0, True, torch.float16, "gen3"),
    Draw((1, 1, 2, 20, 2200, 16), 1100, False, torch.float32, "gen2"),
    Draw((1, 1, 1, 20, 2200, 16), 100, False, torch.bfloat16, "gen3"),
]


@pytest.mark.parametrize("draw", [*drawn(50), *LONG])
def test_it_equals_its_reference(draw: Draw) -> None:
    assert kernels.supports(draw.call()) is None
    arguments = draw.arguments()
    result = simulate(kernels.attention_prefill, target=draw.target)(*arguments)
    expected = kernels.reference(
        *(x.double() if isinstance(x, torch.Tensor) else x for x in arguments)
    )
    bound = NKI_FP32 if draw.dtype is torch.float32 else NKI_BF16
    assert (result - expected).abs().max() <= bound * expected.abs().max()


CALL = AttendCall(1, 1, 4, 4, 64, 64, torch.bfloat16, Causal(), 1.0, None, False, True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"aligned": False}, "not the tokens of the last keys"),
        ({"num_queries": 5}, "not the tokens of the last keys"),
        ({"mask": Chunked(2)}, "neither causal nor a sliding window"),
        ({"softcap": 1.0}, "soft-capped"),
        ({"head_dim": 192, "value_dim": 192}, "not one size"),
        ({"value_dim": 32}, "not one size"),
        ({"dtype": torch.float8_e4m3fn}, "no float of 16 or 32"),
        ({"num_keys": 65536}, "do not fit"),
    ],
)
def test_it_says_what_it_does_not_serve(change: dict[str, Any], reason: str) -> None:
    assert kernels.supports(CALL) is None
    assert reason in kernels.supports(AttendCall(**vars(CALL) | change))


def report_of(num_tokens: int, size: int, target: str = "gen3", dtype: Any = torch.bfloat16) -> Any:
    simulation = simulate(kernels.attention_prefill, target=target, numerics="shapes")
    q = torch.empty(1, 1, 1, num_tokens, size, dtype=dtype, device="meta")
    simulation(q, q[0], q[0], None, size**-0.5)
    return simulation.report()


def share_of_peak(report: Any, num_tokens: int, size: int) -> float:
    """Of the operations that a causal mask leaves, at the tensor engine's peak."""
    return float(2 * num_tokens**2 * size / (report.time_us * 1e6) / report.peak_tflops)


def test_engines_overlap() -> None:
    report = report_of(2048, 128)
    assert share_of_peak(report, 2048, 128) > 0.28
    assert report.bound_by in ("vector", "scalar")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gen2", "gen3", "gen4"])
def test_16k_tokens_reach_45_percent_of_the_peak(target: str) -> None:
    assert share_of_peak(report_of(16384, 128, target), 16384, 128) >= 0.45


@pytest.mark.slow
def test_the_longest_prompt_it_serves_fits_the_smallest_machine() -> None:
    num_keys = 1024
    while kernels.supports(AttendCall(**vars(CALL) | {"num_keys": num_keys + 1024})) is None:
        num_keys += 1024
    assert num_keys >= 32768
    simulation = simulate(kernels.attention_prefill, target="gen2", numerics="shapes")
    q = torch.empty(1, 1, 1, 256, 128, dtype=torch.bfloat16, device="meta")
    k = torch.empty(1, 1, num_keys, 128, dtype=torch.bfloat16, device="meta")
    simulation(q, k, k, None, 1.0)


def test_every_line_runs_and_is_portable() -> None:
    functions = [kernels.attention_prefill, *(getattr(kernels, name) for name in PARTS)]
    arguments = Draw((1, 1, 1, 140, 150, 16), 100, True, torch.float32, "gen3").arguments()
    plain = Draw((1, 1, 1, 260, 270, 16), 0, False, torch.float32, "gen3").arguments()
    with measure_coverage(kernels.attention_prefill) as coverage:
        simulate(kernels.attention_prefill)(*arguments)
        simulate(kernels.attention_prefill)(*plain)
    assert coverage.missing_lines == []
    assert [finding for function in functions for finding in lint(function)] == []

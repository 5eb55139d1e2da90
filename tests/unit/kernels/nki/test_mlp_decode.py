from __future__ import annotations

from functools import partial
from random import Random

import pytest
import torch

from mlp_calls import draw_mlp, empty_mlp
from nki_calls import check_drawn, check_portable
from nxdi.kernels import simulate
from nxdi.kernels.nki import load_kernels

kernels = load_kernels("mlp_decode")


def draw(random: Random, num_cores: int = 1) -> object:
    return draw_mlp(random, [1, 2, 5, 33, 64, 128], [2, 3, 4], num_cores)


@pytest.mark.parametrize("target", ["gen2", "gen3", "gen4"])
def test_it_equals_torch(target: str) -> None:
    check_drawn(kernels, kernels.mlp_decode, draw, target, 12)


@pytest.mark.parametrize("target", ["gen3", "gen4"])
def test_two_cores_equal_torch(target: str) -> None:
    two = partial(draw, num_cores=2)
    check_drawn(kernels, kernels.mlp_decode[2], two, target, 8)


@pytest.mark.parametrize("num_cores", [1, 2])
def test_sums_take_several_turns_in_psum(num_cores: int) -> None:
    """More than 2048 columns of gate and of down."""
    wide = partial(
        draw_mlp, rows=[3], tiles=[17 * num_cores], num_cores=num_cores, intermediates=[2100]
    )
    check_drawn(kernels, kernels.mlp_decode[num_cores], wide, "gen3", 1)


@pytest.mark.parametrize(
    ("rows", "hidden", "intermediate", "num_cores", "reason"),
    [
        (129, 256, 8, 1, "prefill kernel"),
        (65, 16384, 8, 1, "do not fit SBUF"),
        (1, 256, 16385, 1, "do not fit SBUF"),
        (1, 128, 8, 2, "too few"),
        (1, 200, 8, 1, "no multiple of 128"),
    ],
)
def test_it_says_what_it_does_not_serve(
    rows: int, hidden: int, intermediate: int, num_cores: int, reason: str
) -> None:
    shapes = (rows, hidden), (hidden, intermediate), (intermediate, hidden)
    call = kernels.Call(*shapes, torch.bfloat16, num_cores=num_cores)
    assert reason in kernels.supports(call)


@pytest.mark.parametrize(("target", "num_cores"), [("gen2", 1), ("gen3", 2)])
@pytest.mark.parametrize(("hidden", "intermediate"), [(8192, 512), (512, 16384)])
def test_the_largest_it_serves_fits_every_machine(
    target: str, num_cores: int, hidden: int, intermediate: int
) -> None:
    shapes = (128, hidden), (hidden, intermediate), (intermediate, hidden)
    call = kernels.Call(*shapes, torch.bfloat16, (1, hidden), "silu", num_cores)
    assert kernels.supports(call) is None
    simulation = simulate(kernels.mlp_decode[num_cores], target=target, numerics="shapes")
    simulation(*empty_mlp(128, hidden, intermediate, with_gamma=True))


@pytest.mark.parametrize(
    ("target", "num_cores"), [("gen2", 1), ("gen3", 1), ("gen3", 2), ("gen4", 1)]
)
def test_it_streams_its_weights_at_the_rate_of_dma(target: str, num_cores: int) -> None:
    simulation = simulate(kernels.mlp_decode[num_cores], target=target, numerics="shapes")
    simulation(*empty_mlp(4, 8192, 4096))
    report = simulation.report()
    weights = 3 * 8192 * 4096 * 2
    assert weights <= report.hbm_bytes < 1.01 * weights
    # Of the effective rate of all DMA engines, which memory delivers a little less than.
    machine = simulation.machine
    rate = machine.dma_engines * machine.dma_bytes_per_ns * num_cores
    assert report.dma_gb_per_s >= 0.85 * rate
    # Of gen4 the tensor engine, at its sustained rate, is as busy.
    assert report.bound_by == ("tensor" if target == "gen4" else "dma")


def test_it_is_portable() -> None:
    check_portable(kernels)

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random

import pytest
import torch

from mlp_calls import draw_mlp, empty_mlp
from nki_calls import check_drawn, check_portable
from nxdi.kernels import simulate
from nxdi.kernels.nki import load_kernels

kernels = load_kernels("mlp_prefill")
CALL = kernels.Call((300, 256), (256, 512), (512, 256), torch.bfloat16, (1, 256))


def draw(random: Random, num_cores: int = 1) -> object:
    return draw_mlp(random, [1, 64, 130, 300, 530], [1, 2, 3], num_cores)


@pytest.mark.parametrize("target", ["gen2", "gen3", "gen4"])
def test_it_equals_torch(target: str) -> None:
    check_drawn(kernels, kernels.mlp_prefill, draw, target, 12)


@pytest.mark.parametrize("target", ["gen3", "gen4"])
def test_two_cores_equal_torch(target: str) -> None:
    two = partial(draw, num_cores=2)
    check_drawn(kernels, kernels.mlp_prefill[2], two, target, 8)


@pytest.mark.parametrize(("rows", "tiles"), [(257, 69), (129, 129)])
def test_blocks_of_wide_rows_are_shorter(rows: int, tiles: int) -> None:
    assert kernels.block_rows(tiles * 128) < 512
    wide = partial(draw_mlp, rows=[rows], tiles=[tiles], intermediates=[40])
    check_drawn(kernels, kernels.mlp_prefill, wide, "gen3", 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x_shape": (1, 2, 256)}, "no [T, H]"),
        ({"down_shape": (256, 512)}, "no [T, H]"),
        ({"gamma_shape": (256,)}, "is not [1, 256]"),
        (
            {"x_shape": (2, 100), "gate_shape": (100, 8), "down_shape": (8, 100),
             "gamma_shape": None},
            "no multiple of 128",
        ),
        ({"dtype": torch.float32}, "16 bits"),
        ({"activation": "relu"}, "none of silu"),
        ({"num_cores": 4}, "not 1 or 2"),
        ({"gate_shape": (256, 1 << 17), "down_shape": (1 << 17, 256)}, "per partition of SBUF"),
    ],
)  # fmt: skip
def test_it_says_what_it_does_not_serve(change: dict[str, object], reason: str) -> None:
    assert kernels.supports(CALL) is None
    assert reason in kernels.supports(replace(CALL, **change))


@pytest.mark.parametrize(
    ("hidden", "intermediate", "with_gamma"),
    [
        (8704, 128, True),
        (16384, 128, True),
        (512, 10496, False),
        pytest.param(8704, 10496, False, marks=pytest.mark.slow),
    ],
)
def test_the_largest_it_serves_fits_every_machine(
    hidden: int, intermediate: int, with_gamma: bool
) -> None:
    shapes = (512, hidden), (hidden, intermediate), (intermediate, hidden)
    gamma = (1, hidden) if with_gamma else None
    assert kernels.supports(kernels.Call(*shapes, torch.bfloat16, gamma)) is None
    tensors = empty_mlp(kernels.block_rows(hidden), hidden, intermediate, with_gamma)
    simulate(kernels.mlp_prefill, target="gen2", numerics="shapes")(*tensors)


@pytest.mark.parametrize(
    ("rows", "intermediate"), [(512, 1024), pytest.param(1024, 4096, marks=pytest.mark.slow)]
)
def test_it_is_bound_by_products(rows: int, intermediate: int) -> None:
    simulation = simulate(kernels.mlp_prefill, numerics="shapes")
    simulation(*empty_mlp(rows, 8192, intermediate))
    report = simulation.report()
    assert report.bound_by == "tensor"
    assert report.tflops >= 0.6 * report.peak_tflops


def test_it_is_portable() -> None:
    check_portable(kernels)

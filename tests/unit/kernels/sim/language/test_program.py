from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nxdi.kernels import simulate
from sim_kernels import nisa, nki, nl, random_array


@pytest.mark.parametrize(("target", "version"), [("trn1", 2), ("gen3", 3), ("trn3", 4)])
def test_a_kernel_asks_for_its_machine(target: str, version: int) -> None:
    def kernel(x: Any) -> Any:
        assert nisa.get_nc_version() == nisa.nc_version(version)
        assert (nl.tile_size.pmax, nl.tile_size.gemm_stationary_fmax) == (128, 128)
        assert (nl.tile_size.psum_bank_fmax, nl.tile_size.gemm_moving_fmax) == (512, 512)
        assert nl.tile_size.psum_fmax == 4096
        assert nl.tile_size.psum_num_banks() == 8
        assert nl.tile_size.sbuf_size_bytes() == 128 * nl.tile_size.sbuf_fmax_bytes()
        return x

    simulate(kernel, target=target)(random_array(1, 1))


def test_programs_are_counted() -> None:
    def kernel(x: Any) -> Any:
        seen.append((nl.program_id(0), nl.num_programs(0), nl.program_ndim()))
        return x

    seen: list[tuple[int, int, int]] = []
    simulate(kernel)(random_array(1, 1))
    simulate(nki.jit(kernel)[2])(random_array(1, 1))
    assert seen == [(0, 1, 0), (0, 2, 1), (1, 2, 1)]


def test_ranges_and_buffers() -> None:
    assert list(nl.affine_range(3)) == list(nl.static_range(0, 3)) == [0, 1, 2]
    assert list(nl.sequential_range(1, 6, 2)) == [1, 3, 5]
    assert nl.is_hbm(nl.shared_hbm)
    assert nl.is_sbuf(nl.sbuf)
    assert nl.is_psum(nl.psum)
    assert nl.is_on_chip(nl.psum)
    assert not nl.is_on_chip(nl.hbm)


def test_old_loops_and_objects() -> None:
    def kernel(x: Any) -> Any:
        class Config(nl.NKIObject):  # type: ignore[misc, name-defined]  # modules have no types
            rows = 4

        out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
        with nl.no_reorder():
            for row in nl.dynamic_range(Config().rows):
                nisa.dma_copy(out[nl.ds(row, 1), :], x[nl.ds(row, 1), :])
        return out

    x = random_array(4, 8)
    assert np.array_equal(simulate(kernel)(x), x)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nxdi.errors import KernelError
from nxdi.kernels import simulate
from sim_kernels import nisa, nl, random_array


def test_a_loop_with_bounds_from_memory() -> None:
    def kernel(x: Any, bound: Any) -> Any:
        out = nl.zeros(x.shape, x.dtype, buffer=nl.shared_hbm)
        last = nisa.register_alloc()
        nisa.register_load(last, nl.load(bound))

        def body(row: Any) -> None:
            tile = nl.ndarray((1, 8), x.dtype)
            nisa.dma_copy(tile, x[nl.ds(row, 1), :])
            nisa.dma_copy(out[nl.ds(row, 1), :], tile)

        nl.fori_loop(1, last, body)
        return out

    x = random_array(8, 8)
    result = simulate(kernel)(x, np.array([[5]], np.int32))
    assert np.array_equal(result[1:5], x[1:5])
    assert not result[[0, 5, 6, 7]].any()
    with pytest.raises(KernelError, match="indirect-range"):
        simulate(kernel)(x, np.array([[9]], np.int32))


def test_registers_move_and_store_and_loops_end() -> None:
    def kernel(x: Any) -> Any:
        out = nl.ndarray((1, 1), nl.int32, buffer=nl.shared_hbm)
        left, count = nisa.register_alloc(3), nisa.register_alloc(0)

        def body(register: Any) -> Any:
            nisa.register_move(count, count + 2)
            return register - 1

        nl.while_loop(left, body)
        nisa.register_store(out, count)
        return out

    assert simulate(kernel)(random_array(1, 1)).tolist() == [[6]]

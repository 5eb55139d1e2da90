from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from nxdi.errors import KernelError
from nxdi.kernels import simulate
from sim_kernels import nki, nl, random_array, stored
from tolerances import SUM_ORDER_FP32

FUNCTIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "tile op number": (lambda t: nl.subtract(t, 2.0), lambda x: x - 2),
    "number op tile": (lambda t: nl.subtract(2.0, t), lambda x: 2 - x),
    "sum": (lambda t: nl.sum(t, axis=1), lambda x: x.sum(1, keepdim=True)),
    "max": (lambda t: nl.max(t, axis=1), lambda x: x.amax(1, keepdim=True)),
    "min": (lambda t: nl.min(t, axis=-1, keepdims=True), lambda x: x.amin(1, keepdim=True)),
    "mean": (lambda t: nl.mean(t, axis=1), lambda x: x.mean(1, keepdim=True)),
    "var": (lambda t: nl.var(t, axis=1), lambda x: x.var(1, keepdim=True, correction=0)),
    "all": (lambda t: nl.all(nl.greater(t, -1.0), axis=1), lambda x: (x > -1).all(1, True).float()),
    "softmax": (nl.softmax, lambda x: x.softmax(1)),
    "rms_norm": (
        lambda t: nl.rms_norm(t, nl.ones(t.shape, t.dtype), 1, t.shape[1]),
        lambda x: torch.rms_norm(x, (x.shape[1],), eps=1e-6),
    ),
    "transpose": (nl.transpose, lambda x: x.T),
    "matmul": (lambda t: nl.matmul(t, t, transpose_x=True), lambda x: x.T @ x),
    "where": (
        lambda t: nl.where(nl.greater(t, 0.0, dtype=nl.uint8), t, nl.zeros_like(t)),
        lambda x: x.relu(),
    ),
    "broadcast": (
        lambda t: nl.broadcast_to(t[:, 0:1], (16, 8)),
        lambda x: x[:, :1].expand(16, 8),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_on_tiles(name: str) -> None:
    ours, theirs = FUNCTIONS[name]

    def kernel(x: Any) -> Any:
        return stored(ours(nl.load(x)))

    x = torch.from_numpy(random_array(16, 32))
    result = simulate(kernel)(x)
    assert (result - theirs(x)).abs().max() < SUM_ORDER_FP32 * 10


def test_an_operator_needs_a_tile() -> None:
    def kernel() -> None:
        nl.add(1.0, 2.0)

    with pytest.raises(KernelError, match="op-known"):
        simulate(kernel)()


def test_constants() -> None:
    def kernel() -> Any:
        identity = nl.load(nl.shared_identity_matrix(8, dtype=nl.float32))
        ramp = nl.load(nl.shared_constant(nki.tensor.arange(0, 8, 1).reshape(1, 8), nl.bfloat16))
        return stored(identity), stored(ramp)

    identity, ramp = simulate(kernel)()
    assert np.array_equal(identity, np.eye(8))
    assert ramp.tolist() == [list(range(8))]


def test_loads_that_turn_and_gather() -> None:
    def kernel(x: Any, index: Any) -> Any:
        turned = nl.load_transpose2d(x)
        return stored(turned), stored(nl.gather_flattened(nl.load(x), nl.load(index)))

    x, index = random_array(8, 16), np.random.default_rng(0).integers(0, 16, (8, 4))
    turned, gathered = simulate(kernel)(x, index.astype(np.uint32))
    assert np.array_equal(turned, x.T)
    assert np.array_equal(gathered, np.take_along_axis(x, index, axis=1))

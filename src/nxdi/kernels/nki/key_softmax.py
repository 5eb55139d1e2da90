"""Softmax over the keys of a decode kernel, which lie on partitions and several on each."""

from __future__ import annotations

from typing import Any

import nki.isa as nisa
import nki.language as nl

from nxdi.kernels.nki.tiles import TILE


def normalise(state: Any, constants: Any) -> None:
    """Weights of all keys, and their sums on each partition.

    Sums over partitions are left to `weigh`: here the tensor engine would wait for them.
    """
    scores = state["scores"]
    columns = scores.shape[2]
    highest = find_highest(scores, constants)
    shifted = highest.expand_dim(1).broadcast(1, scores.shape[1])
    nisa.tensor_tensor(dst=scores, data1=scores, data2=shifted, op=nl.subtract)
    dtype = state["queries"].dtype
    weights = nl.ndarray(scores.shape, dtype=dtype, buffer=nl.sbuf)
    nisa.activation(dst=weights, op=nl.exp, data=scores)
    sums = nl.ndarray((TILE, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=sums, op=nl.add, data=weights.permute((0, 2, 1)), axis=2)
    state["weights"], state["sums"] = weights, sums


def invert(sums: Any, size: int, constants: Any) -> Any:
    """One over the sum of each query over all partitions, on `size` of them."""
    columns = sums.shape[1]
    total = nl.ndarray((size, columns), dtype=nl.float32, buffer=nl.psum)
    ones = constants["ones"][:, 0:size]
    nisa.nc_matmul(dst=total, stationary=ones, moving=sums, is_stationary_onezero=True)
    inverse = nl.ndarray((size, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse, data=total)
    return inverse


def find_highest(scores: Any, constants: Any) -> Any:
    """The highest score of each query, in PSUM: [128, keys, queries] -> [128, queries].

    Over partitions by a transpose, and back by a product with the identity.
    """
    columns = scores.shape[2]
    found = nl.ndarray((TILE, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=found, op=nl.maximum, data=scores.permute((0, 2, 1)), axis=2)
    turned = nl.ndarray((columns, TILE), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_transpose(dst=turned, data=found, engine=nisa.engine.tensor)
    top = nl.ndarray((columns, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=top, op=nl.maximum, data=turned, axis=1)
    spread = nl.ndarray((TILE, columns), dtype=nl.float32, buffer=nl.psum)
    unit = constants["identity"][0:columns, 0:columns]
    nisa.nc_matmul(
        dst=spread, stationary=top.broadcast(1, TILE), moving=unit, is_moving_onezero=True
    )
    return spread

"""Functions on tiles: each makes its result in SBUF with one or a few instructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nxdi.kernels.sim.dtypes import as_dtype
from nxdi.kernels.sim.enums import engine
from nxdi.kernels.sim.isa import activations, copies, random, vector
from nxdi.kernels.sim.isa.dma import dma_copy
from nxdi.kernels.sim.isa.gpsimd import nc_n_gather
from nxdi.kernels.sim.isa.matmul import nc_matmul, nc_transpose
from nxdi.kernels.sim.language.creation import ndarray, psum
from nxdi.kernels.sim.ops import OPS, Op
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor


def apply(op: Op, operands: Sequence[Any], dtype: Any = None) -> NkiTensor:
    """`op` on one or two tiles, or a tile and a number."""
    tiles = [item for item in operands if isinstance(item, NkiTensor)]
    require(
        len(operands) == op.arity and bool(tiles),
        "op-known",
        f"{op} takes {op.arity} operands, one of them a tile; got {len(operands)}",
    )
    first = tiles[0]
    result = ndarray(first.shape, dtype or first.dtype)
    if op.arity == 1:
        if op.kind == "bitwise":
            vector.tensor_scalar(result, first, op, 0)
        else:
            activations.activation(result, op, first)
    elif len(tiles) == 2:
        vector.tensor_tensor(result, operands[0], operands[1], op)
    else:
        is_reversed = first is operands[1]
        other = operands[0] if is_reversed else operands[1]
        vector.tensor_scalar(result, first, op, other, reverse0=is_reversed)
    return result


def _reduce(op: str, x: NkiTensor, axis: Any, dtype: Any, keepdims: bool) -> NkiTensor:
    axes = sorted(a % x.ndim for a in ([axis] if isinstance(axis, int) else axis))
    kept = [1 if d in axes else n for d, n in enumerate(x.shape)]
    if not keepdims:
        kept = [n for d, n in enumerate(kept) if d not in axes]
    shape = tuple(kept) if len(kept) > 1 else (kept[0], 1)
    result = ndarray(shape, dtype or x.dtype)
    vector.tensor_reduce(result, OPS[op], x, axes)
    return result


def sum(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    return _reduce("add", x, axis, dtype, keepdims)


def max(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    return _reduce("maximum", x, axis, dtype, keepdims)


def min(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    return _reduce("minimum", x, axis, dtype, keepdims)


def prod(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    return _reduce("multiply", x, axis, dtype, keepdims)


def mean(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    total = _reduce("add", x, axis, as_dtype("float32"), keepdims)
    return apply(OPS["multiply"], [total, total.size / x.size], dtype or x.dtype)


def var(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """The variance along the last axes, as the mean square less the squared mean."""
    center = mean(x, axis, "float32", keepdims)
    squares = mean(apply(OPS["square"], [x], "float32"), axis, "float32", keepdims)
    return apply(OPS["subtract"], [squares, apply(OPS["square"], [center])], dtype or x.dtype)


def all(x: NkiTensor, axis: Any, dtype: Any = None) -> NkiTensor:
    """Whether no element along the last axes is zero."""
    return _reduce("minimum", apply(OPS["not_equal"], [x, 0.0]), axis, dtype, False)


def rms_norm(
    x: NkiTensor,
    w: NkiTensor,
    axis: int,
    n: int,
    epsilon: float = 1e-6,
    dtype: Any = None,
    compute_dtype: Any = None,
) -> NkiTensor:
    """`x / sqrt(sum(x ** 2) / n + epsilon) * w` along the last axis."""
    require(axis in (-1, x.ndim - 1), "reduce-axes", f"rms_norm of {x} is along its last axis")
    total, scale = (ndarray((x.shape[0], 1), "float32") for _ in range(2))
    squares = ndarray(x.shape, "float32")
    activations.activation_reduce(squares, OPS["square"], x, OPS["add"], total)
    vector.tensor_scalar(scale, total, OPS["multiply"], 1.0 / n, op1=OPS["add"], operand1=epsilon)
    activations.activation(scale, OPS["rsqrt"], scale)
    result = ndarray(x.shape, dtype or x.dtype)
    vector.scalar_tensor_tensor(result, x, OPS["multiply"], scale, OPS["multiply"], w)
    return result


def softmax(x: NkiTensor, axis: int = -1, dtype: Any = None) -> NkiTensor:
    """Softmax of the last axis, in float32."""
    require(axis in (-1, x.ndim - 1), "reduce-axes", f"softmax of {x} is along its last axis")
    largest = ndarray((x.shape[0], 1), "float32")
    vector.tensor_reduce(largest, OPS["maximum"], x, x.ndim - 1, negate=True)
    total = ndarray((x.shape[0], 1), "float32")
    powers = ndarray(x.shape, "float32")
    activations.activation_reduce(powers, OPS["exp"], x, OPS["add"], total, bias=largest)
    inverse = ndarray((x.shape[0], 1), "float32")
    vector.reciprocal(inverse, total)
    result = ndarray(x.shape, dtype or x.dtype)
    vector.tensor_scalar(result, powers, OPS["multiply"], inverse)
    return result


def where(condition: NkiTensor, x: NkiTensor, y: NkiTensor, dtype: Any = None) -> NkiTensor:
    """`x` where the condition is not zero, else `y`."""
    result = ndarray(x.shape, dtype or x.dtype)
    copies.tensor_copy(result, y)
    chosen = x
    if x.dtype is not result.dtype:
        chosen = ndarray(x.shape, result.dtype)
        copies.tensor_copy(chosen, x)
    copies.tensor_copy_predicated(result, chosen, condition)
    return result


def transpose(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Partitions and elements exchanged; through PSUM."""
    turned = ndarray((x.free_size, x.shape[0]), x.dtype, psum)
    nc_transpose(turned, x, engine.tensor)
    result = ndarray(turned.shape, dtype or x.dtype)
    copies.tensor_copy(result, turned)
    return result


def load_transpose2d(src: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A matrix in memory, turned, as a tile."""
    tile = ndarray((src.shape[1], src.shape[0]), src.dtype)
    dma_copy(tile, src.permute((1, 0)))
    return tile if dtype is None else apply(OPS["copy"], [tile], dtype)


def gather_flattened(
    data: NkiTensor, indices: NkiTensor, axis: int = 0, dtype: Any = None
) -> NkiTensor:
    """`data[p, indices[p, i]]`."""
    result = ndarray(indices.shape, data.dtype)
    nc_n_gather(result, data, indices)
    return result if dtype is None else apply(OPS["copy"], [result], dtype)


def matmul(x: NkiTensor, y: NkiTensor, transpose_x: bool = False) -> NkiTensor:
    """`x @ y` in PSUM; with `transpose_x`, `x` already has the contraction on its partitions."""
    left = x if transpose_x else transpose(x)
    result = ndarray((left.free_size, y.free_size), "float32", psum)
    nc_matmul(result, left, y)
    return result


def random_seed(seed: NkiTensor) -> None:
    """Seed what `rand` draws from, with a tile [1, 1]."""
    random.set_rng_seed(seed)


def dropout(x: NkiTensor, rate: float | NkiTensor, dtype: Any = None) -> NkiTensor:
    """`x`, but 0 with probability `rate`."""
    result = ndarray(x.shape, dtype or x.dtype)
    random.dropout(result, x, rate)
    return result

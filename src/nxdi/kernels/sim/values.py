"""Reading and writing the elements of a view, directly or through indices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nxdi.kernels.sim.core import current
from nxdi.kernels.sim.dtypes import Array, DType
from nxdi.kernels.sim.memory import strided, whole
from nxdi.kernels.sim.registers import VirtualRegister, value_of
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor, resolved


def _flat(tensor: NkiTensor) -> Array:
    """The elements of the view's storage as the carrier of its dtype."""
    storage, numerics = tensor.storage, current().numerics
    assert storage.elements is not None
    if tensor.dtype is storage.dtype:
        return storage.elements
    new, old = numerics.carrier(tensor.dtype), numerics.carrier(storage.dtype)
    require(
        new.itemsize == tensor.dtype.itemsize and old.itemsize == storage.dtype.itemsize,
        "reinterpret-size",
        f"{storage.dtype} seen as {tensor.dtype} has no bits in fp32 mode; use precise numerics",
    )
    return storage.elements.view(new)


def raw(tensor: NkiTensor, *, skips: bool = False) -> Array:
    """The elements as they are stored; a window where the view is direct.

    `skips` allows indices out of range, whose elements are then undefined.
    """
    tensor = resolved(tensor)
    flat = _flat(tensor)
    if tensor.index is None:
        return strided(flat, tensor.shape, tensor.steps, tensor.offset, flat.itemsize)
    places, inside = places_of(tensor)
    _check_inside(tensor, inside, skips)
    taken: Array = flat[np.where(inside, places, 0)]
    return taken


def _check_inside(tensor: NkiTensor, inside: Array, skips: bool) -> None:
    assert tensor.index is not None
    outside = int(np.count_nonzero(~inside.reshape(inside.shape[0], -1).all(axis=1)))
    require(
        skips or outside == 0,
        "indirect-range",
        f"{outside} indices lie outside 0..{tensor.index.limit}; clamp them, or use a DMA with "
        "oob_mode.skip",
    )


def places_of(tensor: NkiTensor) -> tuple[Array, Array]:
    """Flat places of an indirect view's elements, and which are within the tensor."""
    assert tensor.index is not None
    index, places = tensor.index, np.array(tensor.offset, dtype=np.int64)
    for dim, (step, number) in enumerate(zip(tensor.steps, tensor.shape, strict=True)):
        shape = [1] * len(tensor.shape)
        shape[dim] = number
        places = places + (np.arange(number, dtype=np.int64) * step).reshape(shape)
    inside = np.ones(tensor.shape, dtype=bool)
    for at in _indices(tensor):
        places = places + at * index.step
        inside = inside & (at >= 0) & (at < index.limit)
    return places, inside


def _indices(tensor: NkiTensor) -> Iterator[Array]:
    assert tensor.index is not None
    if tensor.index.vector is not None:
        rows = raw(tensor.index.vector).reshape(-1).astype(np.int64)
        yield rows[: tensor.shape[0]].reshape(-1, *[1] * (tensor.ndim - 1))
    scalar = tensor.index.scalar
    if isinstance(scalar, VirtualRegister):
        yield np.array(value_of(scalar))
    elif scalar is not None:
        yield raw(scalar).reshape(-1)[:1].astype(np.int64).reshape([1] * tensor.ndim)


def numbers(tensor: NkiTensor, *, skips: bool = False) -> Array:
    """The elements as float32, in the view's shape."""
    return current().numerics.decode(tensor.dtype, raw(tensor, skips=skips))


def rows(tensor: NkiTensor) -> Array:
    """The elements as float32 [partitions, elements per partition]."""
    return numbers(tensor).reshape(tensor.shape[0], -1)


def raw_rows(tensor: NkiTensor) -> Array:
    return raw(tensor).reshape(tensor.shape[0], -1)


def write(tensor: NkiTensor, values: Array, *, skips: bool = False) -> None:
    """Cast `values` to the view's dtype and store them."""
    write_raw(tensor, current().numerics.encode(tensor.dtype, values), skips=skips)


def write_raw(tensor: NkiTensor, elements: Array, *, skips: bool = False) -> None:
    """Store elements that have the view's dtype already; `skips` leaves those out of range."""
    tensor = resolved(tensor)
    flat = _flat(tensor)
    shaped = elements.reshape(tensor.shape)
    if tensor.index is None:
        strided(flat, tensor.shape, tensor.steps, tensor.offset, flat.itemsize)[...] = shaped
        return
    places, inside = places_of(tensor)
    _check_inside(tensor, inside, skips)
    flat[places[inside]] = shaped[inside]
    if tensor.storage.valid is not None:
        marks = tensor.storage.valid.view(np.dtype(f"u{tensor.dtype.itemsize}"))
        marks[places[inside]] = whole(tensor.dtype.itemsize)


def operand(value: Any) -> Any:
    """A scalar as it is, a vector [P, 1] as a float32 column."""
    return rows(value) if isinstance(value, NkiTensor) else np.float32(value)


def is_exact_integer(*dtypes: DType) -> bool:
    """Whether all are integers of 32 bits, which float32 does not hold exactly."""
    return all(dtype.name in ("int32", "uint32") for dtype in dtypes)

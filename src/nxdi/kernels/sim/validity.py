"""Which bytes have been written, and by what: checked before they are read."""

from __future__ import annotations

from typing import Any

import numpy as np

from nxdi.kernels.sim.memory import byte_mask, whole
from nxdi.kernels.sim.registers import VirtualRegister
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor, resolved


def _window(mask: Any, tensor: NkiTensor) -> Any:
    return byte_mask(mask, tensor.dtype.itemsize, tensor.shape, tensor.steps, tensor.offset)


def _is_known(tensor: NkiTensor) -> bool:
    """Whether the bytes of the view are known before its indices are."""
    return tensor.index is None or isinstance(tensor.index.scalar, VirtualRegister)


def check_written(tensor: NkiTensor) -> None:
    """Every byte of the view has been written."""
    storage = tensor.storage
    if storage.valid is None or storage.all_valid or not _is_known(tensor):
        return
    marks = _window(storage.valid, resolved(tensor))
    missing = marks != whole(tensor.dtype.itemsize)
    if not missing.any():
        return
    first = tuple(int(at) for at in np.argwhere(missing)[0])
    if storage.destroyers:
        by = ", ".join(storage.destroyers)
        message = f"{storage.allocation} is read after {by} wrote at the same address"
        require(False, "manual-overlap", f"{message}; move one of them, or read before")
    require(
        False,
        "uninitialized-read",
        f"{int(missing.sum())} of {missing.size} elements of {tensor} "
        f"({storage.allocation}) were never written, the first at {first}; write them, or read "
        "fewer",
    )


def mark_written(tensor: NkiTensor, where: Any = True) -> None:
    """The elements of the view, those of `where` only, have been written."""
    storage = tensor.storage
    if storage.valid is None or storage.all_valid:
        return
    if not _is_known(tensor):
        # Without values the indices are unknown too: all may be written.
        storage.all_valid = storage.elements is None
        return
    view = resolved(tensor)
    marks = _window(storage.valid, view)
    value = whole(view.dtype.itemsize)
    if where is True:
        marks[...] = value
        is_all = view.size * view.dtype.itemsize == storage.valid.size and view.is_contiguous()
        storage.all_valid = is_all and not any(step == 0 for step in view.steps)
    else:
        marks[where] = value


def mark_writer(tensor: NkiTensor, writer: int) -> None:
    """Note for PSUM whether a matmul or something else wrote the view."""
    if tensor.storage.writers is not None:
        marks = _window(tensor.storage.writers, tensor)
        marks[...] = whole(tensor.dtype.itemsize) * writer


def writers_of(tensor: NkiTensor) -> set[int]:
    """Who wrote the elements of a PSUM view: 0 for nobody."""
    assert tensor.storage.writers is not None
    width = whole(tensor.dtype.itemsize)
    marks = _window(tensor.storage.writers, tensor)
    low, high = int(marks.min()), int(marks.max())
    found = {low, high} if low == high or high - low == width else set(map(int, np.unique(marks)))
    return {value // width for value in found}

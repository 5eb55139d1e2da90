"""Making tensors, and moving them in and out: the part of `nki.language` about memory."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from nxdi.kernels.sim.core import Core, current
from nxdi.kernels.sim.dtypes import DType, as_dtype, uint8
from nxdi.kernels.sim.enums import engine
from nxdi.kernels.sim.isa import copies, dma, random
from nxdi.kernels.sim.memory import MemoryRegion
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import DynamicSlice, NkiTensor
from nxdi.kernels.sim.trace import Work
from nxdi.kernels.sim.values import write

sbuf, psum = MemoryRegion.sbuf, MemoryRegion.psum
private_hbm, shared_hbm = MemoryRegion.private_hbm, MemoryRegion.shared_hbm
hbm = MemoryRegion.private_hbm


def ds(start: Any, size: int) -> DynamicSlice:
    """`size` elements from `start` on."""
    return DynamicSlice(start, size)


def ndarray(
    shape: tuple[int, ...],
    dtype: Any,
    buffer: MemoryRegion = sbuf,
    name: str = "",
    address: tuple[int, int] | None = None,
) -> NkiTensor:
    """A tensor of unwritten elements; on chip, its first dimension is the partitions."""
    core, kind = current(), as_dtype(dtype)
    require(
        isinstance(buffer, MemoryRegion),
        "buffer-known",
        f"buffer {buffer!r} is not a buffer; use nl.sbuf, nl.psum or nl.shared_hbm",
    )
    sizes = tuple(int(number) for number in shape)
    if buffer.is_on_chip:
        _check_on_chip(core, sizes, kind, buffer)
        if address is not None:
            _check_address(core, sizes, kind, buffer, address)
    if buffer is shared_hbm:
        return _shared(core, sizes, kind, name)
    return core.allocate(sizes, kind, buffer, name, address)


def _check_on_chip(core: Core, shape: tuple[int, ...], dtype: DType, buffer: MemoryRegion) -> None:
    require(
        len(shape) >= 2,
        "tensor-rank",
        f"shape {shape} has no free dimension; on chip use (partitions, elements)",
    )
    most = core.machine.partitions
    require(
        0 < shape[0] <= most,
        "partition-limit",
        f"{shape[0]} partitions of shape {shape} are more than {most}; tile the first dimension",
    )
    size = prod(shape[1:]) * dtype.itemsize
    is_psum = buffer is psum
    limit = core.machine.psum_bytes if is_psum else core.machine.sbuf_usable_bytes
    require(
        size <= limit,
        "psum-tensor-size" if is_psum else "sbuf-tensor-size",
        f"{size} bytes per partition of shape {shape} are more than {limit} on "
        f"{core.machine.name}; tile the free dimensions",
    )


def _check_address(
    core: Core,
    shape: tuple[int, ...],
    dtype: DType,
    buffer: MemoryRegion,
    address: tuple[int, int],
) -> None:
    start, first = address
    unit = 4 if buffer is psum else dtype.itemsize
    require(
        first % unit == 0,
        "address-alignment",
        f"byte {first} of address {address} is no multiple of {unit}; align it",
    )
    limit = core.machine.psum_bytes if buffer is psum else core.machine.sbuf_usable_bytes
    last = first + prod(shape[1:]) * dtype.itemsize
    require(
        start >= 0 and start + shape[0] <= core.machine.partitions and first >= 0 and last <= limit,
        "address-range",
        f"{shape} at {address} ends at partition {start + shape[0]}, byte {last}; the buffer ends "
        f"at {core.machine.partitions}, {limit}",
    )


def _shared(core: Core, shape: tuple[int, ...], dtype: DType, name: str) -> NkiTensor:
    """The tensor that the other cores know by the same name, or make at the same place."""
    key = name or core.num_shared
    core.num_shared += not name
    tensor = core.allocate(shape, dtype, shared_hbm, name)
    known = core.shared.setdefault(key, tensor.storage)
    if known is tensor.storage:
        return tensor
    same = (known.allocation.partitions, known.allocation.row_bytes, known.dtype)
    require(
        same == (tensor.storage.allocation.partitions, tensor.storage.allocation.row_bytes, dtype),
        "shared-tensor",
        f"{tensor} is not what another core made as {known.allocation}; name both alike",
    )
    own = replace(tensor.storage, elements=known.elements, valid=known.valid, shared=known.shared)
    return replace(tensor, storage=own)


def zeros(shape: Any, dtype: Any, buffer: MemoryRegion = sbuf, name: str = "") -> NkiTensor:
    return full(shape, 0, dtype, buffer, name)


def ones(shape: Any, dtype: Any, buffer: MemoryRegion = sbuf, name: str = "") -> NkiTensor:
    return full(shape, 1, dtype, buffer, name)


def full(
    shape: Any, fill_value: Any, dtype: Any, buffer: MemoryRegion = sbuf, name: str = ""
) -> NkiTensor:
    """A tensor with one value in every element."""
    tensor = ndarray(shape, dtype, buffer, name)
    if buffer.is_on_chip:
        copies.memset(tensor, fill_value)
        return tensor
    core = current()
    if core.issue("memset", engine.dma, [], [tensor], Work(core.machine.dma_latency_ns)):
        write(tensor, np.full(tensor.shape, fill_value, np.float32))
    return tensor


def empty_like(
    x: NkiTensor, dtype: Any = None, buffer: MemoryRegion | None = None, name: str = ""
) -> NkiTensor:
    return ndarray(x.shape, dtype or x.dtype, buffer or x.buffer, name)


def zeros_like(
    x: NkiTensor, dtype: Any = None, buffer: MemoryRegion | None = None, name: str = ""
) -> NkiTensor:
    return full(x.shape, 0, dtype or x.dtype, buffer or x.buffer, name)


def load(src: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A copy of `src` in SBUF."""
    shape = src.shape if src.ndim >= 2 else (1, *src.shape)
    tile = ndarray(shape, dtype or src.dtype)
    dma.dma_copy(tile, src)
    return tile


def store(dst: NkiTensor, value: NkiTensor) -> None:
    """Copy a tile to memory."""
    dma.dma_copy(dst, value)


def shared_constant(constant: Any, dtype: Any = None) -> NkiTensor:
    """A tensor in memory with the elements of an array."""
    array = np.asarray(constant)
    tensor = current().allocate(array.shape, as_dtype(dtype or array.dtype), private_hbm)
    if current().issue("constant", engine.dma, [], [tensor], Work(0.0)):
        write(tensor, array)
    return tensor


def shared_identity_matrix(n: int, dtype: Any = uint8, dst: NkiTensor | None = None) -> NkiTensor:
    """The n x n identity, in memory, or copied to `dst`."""
    constant = shared_constant(np.eye(n, dtype=np.float32), dtype)
    if dst is None:
        return constant
    dma.dma_copy(dst, constant)
    return dst


def broadcast_to(x: NkiTensor, shape: tuple[int, ...], dtype: Any = None) -> NkiTensor:
    """A tile repeated along free dimensions of size 1."""
    view = x
    for dim, number in enumerate(shape):
        if view.shape[dim] != number:
            view = view.broadcast(dim, number)
    result = ndarray(tuple(shape), dtype or x.dtype)
    copies.tensor_copy(result, view)
    return result


def expand_dims(x: NkiTensor, axis: int) -> NkiTensor:
    return x.expand_dim(axis)


def rand(shape: Any, dtype: Any, buffer: MemoryRegion = sbuf, name: str = "") -> NkiTensor:
    """Uniform numbers in [0, 1); not those of the device."""
    tensor = ndarray(shape, dtype, buffer, name)
    random.fill_uniform(tensor)
    return tensor


def device_print(print_prefix: str, tensor: NkiTensor) -> None:
    """Reads the tensor, as on the device; what it holds is for a debugger to show."""
    current().issue("device_print", engine.dma, [tensor], [], Work(0.0))

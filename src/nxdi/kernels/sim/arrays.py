"""NumPy arrays and torch tensors to tensors in memory, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from nxdi.kernels.sim.core import Core
from nxdi.kernels.sim.dtypes import Array, as_dtype
from nxdi.kernels.sim.memory import MemoryRegion
from nxdi.kernels.sim.rules import require
from nxdi.kernels.sim.tensor import NkiTensor

_TORCH_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor))


def _elements(array: Any) -> Array:
    """The elements of an array as their carrier type, without copying where possible."""
    if not isinstance(array, torch.Tensor):
        flat: Array = np.ascontiguousarray(array).reshape(-1)
        known = flat.dtype.kind in "fiub" and flat.dtype.isbuiltin == 1
        return flat if known else flat.view(np.dtype(f"u{flat.dtype.itemsize}"))
    dtype = as_dtype(array.dtype)
    bits = array.detach().contiguous().reshape(-1)
    if dtype.carrier.kind == "u" and dtype.is_float:
        return bits.view(_TORCH_BITS[dtype.itemsize]).numpy().view(dtype.carrier)
    converted: Array = bits.numpy()
    return converted


def to_device(core: Core, array: Any, name: str) -> NkiTensor:
    """An input of a kernel: written, in memory."""
    dtype = as_dtype(array.dtype)
    shape = tuple(int(number) for number in array.shape)
    tensor = core.allocate(shape, dtype, MemoryRegion.shared_hbm, name)
    storage = tensor.storage
    storage.all_valid = True
    if core.numerics.computes:
        elements = _elements(array)
        if core.numerics.carrier(dtype) != dtype.carrier:
            from nxdi.kernels.sim.dtypes import Precise

            elements = Precise().decode(dtype, elements)
        storage.elements = elements.copy()
    return tensor


def to_host(core: Core, tensor: NkiTensor, as_torch: bool) -> Any:
    """An output of a kernel as an array; float types that NumPy lacks become float32."""
    assert tensor.storage.elements is not None
    dtype = tensor.dtype
    elements = tensor.storage.elements.reshape(tensor.shape)
    if as_torch and hasattr(torch, dtype.name):
        kind = getattr(torch, dtype.name)
        if elements.dtype.kind == "u" and dtype.is_float:
            bits = torch.from_numpy(elements.view(np.dtype(f"i{dtype.itemsize}")).copy())
            return bits.view(kind)
        return torch.from_numpy(elements.copy()).to(kind)
    if elements.dtype.kind == "u" and dtype.is_float:
        elements = core.numerics.decode(dtype, elements)
    return torch.from_numpy(elements.copy()) if as_torch else elements.copy()


def shape_of(tensor: NkiTensor, as_torch: bool) -> Any:
    """An output without values: its shape and dtype, as a torch tensor on the meta device."""
    kind = getattr(torch, tensor.dtype.name, torch.float32)
    return torch.empty(tensor.shape, dtype=kind, device="meta")


def check_output(core: Core, tensor: Any) -> None:
    """What a kernel returns is in shared memory and written."""
    require(
        isinstance(tensor, NkiTensor) and tensor.buffer is MemoryRegion.shared_hbm,
        "output-shared-hbm",
        f"the kernel returns {tensor}; return tensors made with buffer=nl.shared_hbm",
    )
    storage = tensor.storage
    if storage.valid is not None and not storage.all_valid:
        missing = int((storage.valid == 0).sum())
        require(
            missing == 0,
            "output-written",
            f"{missing} of {storage.valid.size} bytes of the returned {tensor} were never written",
        )

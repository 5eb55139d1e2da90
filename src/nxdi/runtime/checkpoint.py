"""Checkpoint files as a dictionary of tensors: memory-mapped, never executed, never outside."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nxdi.errors import WeightError

_SAFETENSORS = "model.safetensors"
_PICKLED = "pytorch_model.bin"


def find_checkpoint(folder: Path) -> list[Path]:
    """The checkpoint files of a Hugging Face folder: safetensors, else `pytorch_model.bin`.

    Raises: WeightError if there are none, or an index names a file that is missing or outside the
    folder.
    """
    for name in (_SAFETENSORS, _PICKLED):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            return _indexed(folder, index)
    raise WeightError(
        f"no checkpoint in {folder}: it holds neither {_SAFETENSORS} nor {_PICKLED} (nor an index "
        "of either)"
    )


def read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, memory-mapped.

    Raises: WeightError naming a file that cannot be read.
    """
    tensors: dict[str, Tensor] = {}
    for file in find_checkpoint(folder):
        tensors.update(_read_file(file))
    return tensors


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Tensors of one safetensors file, memory-mapped.

    Raises: WeightError if it is damaged or cut short.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()  # a method, though not of a dict
            return {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise WeightError(
            f"{file} is not a readable safetensors file: {error}; fetch it again"
        ) from error


def write_safetensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to one file; tensors that share memory are written separately."""
    from safetensors.torch import save_file

    save_file(
        {
            name: tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        },
        file,
    )


def _indexed(folder: Path, index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise WeightError(
            f"{index} is not a checkpoint index: {error!r}; fetch it again"
        ) from error
    files = [folder / str(name) for name in names]
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise WeightError(
            f"{index} names files outside its folder: {outside}; fetch the model again"
        )
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise WeightError(f"{index} names files that are missing: {missing}; fetch them again")
    return files


def _read_file(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    try:
        # Files older than torch 1.6 are no zip archives and cannot be memory-mapped.
        mmap = zipfile.is_zipfile(file)
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise WeightError(
            f"{file} is damaged or holds more than tensors, and is refused because reading it "
            "could run code; fetch it again, or convert it to safetensors where you trust it"
        ) from error
    except Exception as error:  # a damaged file makes its parsers raise anything
        raise WeightError(
            f"{file} is not a readable PyTorch checkpoint: {error}; fetch it again"
        ) from error
    if not isinstance(loaded, dict) or not all(
        isinstance(value, Tensor) for value in loaded.values()
    ):
        raise WeightError(f"{file} is not a dictionary of tensors; save model.state_dict() instead")
    return loaded


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names for an error message, the first `most` of them."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more

"""Checkpoint files as a dictionary of tensors: memory-mapped, never executed, never outside."""

from __future__ import annotations

import pickle
import stat
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nxdi.config import serialize
from nxdi.config.limits import shown
from nxdi.errors import ConfigError, WeightError

_SAFETENSORS = "model.safetensors"
_PICKLED = "pytorch_model.bin"
# Several times what the largest published checkpoints have.
_MAX_INDEX_SIZE = 32 << 20  # bytes
_MAX_HEADER_SIZE = 32 << 20  # bytes
_MAX_TENSORS = 100_000  # in one file; each takes about a kilobyte of memory beside its data


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

    Raises: WeightError naming a file that cannot be read, or a tensor that two files have.
    """
    tensors: dict[str, Tensor] = {}
    for file in find_checkpoint(folder):
        found = read_file(file)
        if twice := found.keys() & tensors.keys():
            raise WeightError(f"{file} repeats tensors of another file: {listed(twice)}; keep one")
        tensors.update(found)
    return tensors


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Tensors of one safetensors file, memory-mapped.

    Raises: WeightError if it is damaged, cut short, or has a header beyond all measure.
    """
    from safetensors import SafetensorError, safe_open

    try:
        _check_header(file)
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()  # a method, though not of a dict
            if len(names) > _MAX_TENSORS:
                raise ValueError(f"it holds {len(names)} tensors, more than {_MAX_TENSORS}")
            return {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise WeightError(
            f"{file} is not a readable safetensors file: {error}; fetch it again"
        ) from error


def write_safetensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to one file; tensors that share memory are written separately.

    It has the mode of any new file; safetensors alone would keep it to its owner.
    """
    from safetensors.torch import save_file

    file.touch()
    mode = stat.S_IMODE(file.stat().st_mode)
    save_file(
        {
            name: tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        },
        file,
    )
    file.chmod(mode)


def _check_header(file: Path) -> None:
    """Refuse a huge header before it is parsed: the format's own limit is 100 MB."""
    with open(file, "rb") as opened:
        start = opened.read(8)
    # A file of fewer bytes is for the parser to refuse.
    size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if size > _MAX_HEADER_SIZE:
        raise ValueError(f"its header has {size} bytes, more than {_MAX_HEADER_SIZE}")


def _indexed(folder: Path, index: Path) -> list[Path]:
    try:
        data = serialize.parse(serialize.read_text(index, _MAX_INDEX_SIZE), str(index))
    except ConfigError as error:
        raise WeightError(f"{index} is not a checkpoint index: {error}; fetch it again") from error
    weight_map = data.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightError(
            f"{index} is not a checkpoint index: its weight_map is {shown(weight_map)}, not a "
            "mapping of tensors to files; fetch it again"
        )
    outside = [shown(name) for name in weight_map.values() if not _is_file_name(name)]
    if outside:
        raise WeightError(
            f"{index} names files outside its folder: {listed(outside)}; fetch the model again"
        )
    files = [folder / name for name in sorted(set(weight_map.values()))]
    if missing := [shown(file.name) for file in files if not file.is_file()]:
        raise WeightError(
            f"{index} names files that are missing: {listed(missing)}; fetch them again"
        )
    return files


def _is_file_name(name: object) -> bool:
    # What is longer, or holds a null byte, no file system has.
    return (
        isinstance(name, str) and Path(name).name == name and len(name) < 256 and "\0" not in name
    )


def read_file(file: Path) -> dict[str, Tensor]:
    """Tensors of one file, memory-mapped: safetensors, else PyTorch's. Raises: WeightError."""
    return read_safetensors(file) if file.suffix == ".safetensors" else _read_pickled(file)


def _read_pickled(file: Path) -> dict[str, Tensor]:
    try:
        # Files older than torch 1.6 are no zip archives and cannot be memory-mapped.
        mmap = zipfile.is_zipfile(file)
        if mmap:
            _check_archive(file)
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
        isinstance(name, str) and _is_plain(value) for name, value in loaded.items()
    ):
        raise WeightError(f"{file} is not a dictionary of tensors; save model.state_dict() instead")
    # Tied tensors are saved once. A few bytes can also claim to be a tensor of any size.
    claimed, size = sum(map(_num_bytes, loaded.values())), file.stat().st_size
    if claimed > 2 * size:
        raise WeightError(
            f"{file} claims tensors of {claimed} bytes, more than twice its size of {size}; save "
            "contiguous tensors instead"
        )
    return loaded


def _check_archive(file: Path) -> None:
    """torch stores without compression, so that no archive unpacks to more than it is."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed")
    if len(entries) > _MAX_TENSORS:
        raise ValueError(f"it holds {len(entries)} records, more than {_MAX_TENSORS}")


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names for an error message, the first `most` of them."""
    ordered = sorted(name if name.isprintable() else repr(name) for name in names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(_shortened(name) for name in ordered[:most]) + more


def _shortened(name: str, most: int = 200) -> str:
    return name if len(name) <= most else f"{name[:most]}..."

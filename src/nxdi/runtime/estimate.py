"""How much memory weights and caches will take: the load, played on the meta device.

The code that cuts a checkpoint for a rank runs on tensors that have shapes and no memory, so that
padding, copied heads and shared tensors are counted as they will be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nxdi.config import serialize, to_torch_dtype
from nxdi.errors import WeightError
from nxdi.parallel_layers.layers import RankShard
from nxdi.parallel_layers.sharding import shard_of
from nxdi.runtime.checkpoint import find_checkpoint, read_safetensors
from nxdi.runtime.weights import cut_for_rank


def checkpoint_on_meta(
    wanted: Mapping[str, Tensor], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """The checkpoint that a model with the tensors `wanted` (one rank's shapes) asks for.

    dtype: of its floating-point tensors; None: the model's own.
    """
    full = {}
    for name, tensor in wanted.items():
        shard, shape = shard_of(tensor), tuple(tensor.shape)
        if isinstance(shard, RankShard):
            continue
        of_file = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        shape = shape if shard is None else shard.full_shape(shape)
        full[name] = torch.empty(shape, dtype=of_file, device="meta")
    return full


def rank_bytes(
    wanted: Mapping[str, Tensor], full: Mapping[str, Tensor], rank: int, shares: bool
) -> int:
    """Bytes of one rank's weights.

    shares: tensors that are one in the checkpoint, and stay one when cut, count once.
    """
    cut = cut_for_rank(wanted, full, rank)
    if not shares:
        return sum(tensor.nbytes for tensor in cut.values())
    return sum({memory_of(tensor): tensor.nbytes for tensor in cut.values()}.values())


def memory_of(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two tensors that are the same stretch of the same memory, on meta as well."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape)


def checkpoint_dtype(folder: Path) -> torch.dtype | None:
    """The dtype of most tensors of a model folder, from the headers of its safetensors files.

    Without such files, what its config.json says; None if that says nothing either.
    """
    counts = Counter(
        tensor.dtype
        for file in _safetensors_files(folder)
        for tensor in read_safetensors(file).values()  # memory-mapped: headers are all that is read
    )
    if counts:
        return counts.most_common(1)[0][0]
    file = folder / "config.json"
    config = serialize.read_object(file)
    named = config.get("dtype") or config.get("torch_dtype")
    return to_torch_dtype(named) if isinstance(named, str) else None


def _safetensors_files(folder: Path) -> list[Path]:
    try:
        return [file for file in find_checkpoint(folder) if file.suffix == ".safetensors"]
    except WeightError:  # planning needs no weights
        return []

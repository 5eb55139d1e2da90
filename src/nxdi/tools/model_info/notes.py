"""What one would not expect of the memory numbers: tied, padded, copied, quantized, rolling."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from nxdi.config import NeuronConfig
from nxdi.config.quantization import Block, WeightQuantization
from nxdi.modules.kvcache import ChunkedCache, RollingCache, WindowCache
from nxdi.modules.quantization import quantized_names
from nxdi.parallel_layers.sharding import (
    DimShard,
    ExpertShard,
    HeadShard,
    TurnedShard,
    shard_of,
)
from nxdi.runtime.estimate import memory_of
from nxdi.runtime.weights import cut_for_rank


def tied_notes(
    wanted: Mapping[str, Tensor], full: Mapping[str, Tensor], shares: bool
) -> Iterator[str]:
    """Tensors that are one in the checkpoint, and whether they are one in memory."""
    cut = cut_for_rank(wanted, full, rank=0)
    for names in _groups({name: memory_of(tensor) for name, tensor in full.items()}):
        listing = " and ".join(names)
        if shares and len({memory_of(cut[name]) for name in names}) == 1:
            yield f"{listing} are tied and share memory"
        else:
            yield f"{listing} are tied in the checkpoint and are separate copies in memory"


def sharding_notes(wanted: Mapping[str, Tensor], num_ranks: int) -> Iterator[str]:
    """Tensors with heads or sizes that do not divide by the ranks."""
    found = {}
    for name, tensor in wanted.items():
        shard = shard_of(tensor)
        if isinstance(shard, TurnedShard):
            shard, tensor = shard.shard, tensor.T
        text = None
        if isinstance(shard, HeadShard):
            text = _head_note(shard)
        elif isinstance(shard, DimShard):
            text = _size_note(shard.full_size, tensor.shape[shard.dim] * num_ranks)
        elif isinstance(shard, ExpertShard):
            local = tensor.shape[shard.dim] // shard.parts
            text = _size_note(shard.full_size, local * shard.layout.tp_degree)
        if text is not None:
            found[re.sub(r"\.\d+\.", ".*.", name)] = text
    for names in _groups(found, smallest=1):
        yield f"{', '.join(names)}: {found[names[0]]}"


def quantization_notes(
    model: nn.Module, kept: WeightQuantization | None, stored: WeightQuantization | None
) -> Iterator[str]:
    """How weights are kept, and whether they are widened when they are loaded.

    stored: how those of the checkpoint are quantized.
    """
    if kept is not None:
        yield (
            f"{len(quantized_names(model))} weights are kept as {kept.name}, with "
            f"{_scales_note(kept.linear_block)}"
        )
        if kept.skipped and stored is not None:
            yield "the others are plain in the checkpoint, or widened when they are loaded"
    elif stored is not None:
        yield f"weights of {stored.name} are widened when they are loaded (quantized=False)"


def _scales_note(block: Block) -> str:
    rows, columns = block
    if columns is not None:
        return f"one scale for each {rows} x {columns} values"
    return "one scale" if rows is None else "one scale for each row"


def pool_notes(config: NeuronConfig) -> Iterator[str]:
    """How many tokens the blocks of a paged cache hold."""
    if config.is_block_kv_layout:
        num_tokens = config.pa_num_blocks * config.pa_block_size
        yield (
            f"pa_num_blocks={config.pa_num_blocks} of {config.pa_block_size} tokens, which hold "
            f"{num_tokens / config.max_length:.1f} sequences of max_length={config.max_length}"
        )


def rolling_notes(module: nn.Module) -> Iterator[str]:
    """Layers whose caches hold a window or a chunk only."""
    layouts: list[Any] = [m.cache_layout for m in module.modules() if hasattr(m, "cache_layout")]
    kept = [
        _KEPT[type(layout)].format(layout.size)
        for layout in layouts
        if isinstance(layout, RollingCache)
    ]
    for tokens in sorted(set(kept)):
        yield (
            f"{kept.count(tokens)} of {len(layouts)} layers keep the keys and values of {tokens} "
            "only"
        )


_KEPT = {WindowCache: "the newest {} tokens", ChunkedCache: "one chunk of {} tokens"}


def _head_note(shard: HeadShard) -> str | None:
    heads = [head for of_rank in shard.heads for head in of_rank]
    zeros = heads.count(-1)
    copies = len(heads) - zeros - shard.num_heads
    if not (zeros or copies):
        return None
    extra = [f"{copies} copies"] * bool(copies) + [f"{zeros} of zeros"] * bool(zeros)
    return f"{shard.num_heads} heads become {len(heads)}, with {' and '.join(extra)}"


def _size_note(full_size: int, size: int) -> str | None:
    return None if size == full_size else f"{full_size} is padded with zeros to {size}"


def _groups(values: Mapping[str, object], smallest: int = 2) -> list[list[str]]:
    """Names with equal values, in groups of at least `smallest`."""
    groups: dict[object, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    return [names for names in groups.values() if len(names) >= smallest]

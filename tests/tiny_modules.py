"""Modules on their own: a config to build them from, weights to fill them with, a step to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nxdi.config import InferenceConfig, NeuronConfig
from nxdi.modules.context import LayerContext, StepContext
from nxdi.modules.kvcache import KVCacheLayout, RollingCache
from nxdi.modules.kvcache.spec import Attended, CacheState, StepPositions
from nxdi.modules.order import InLine
from nxdi.parallel_layers.parallel_state import tensor_parallel
from nxdi.parallel_layers.sharding import shard_of
from nxdi.types import Phase

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_ATTRIBUTES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 11,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "max_position_embeddings": 64,
}


def tiny_config(attributes: Mapping[str, Any] | None = None, **options: Any) -> InferenceConfig:
    """The config of a model of hidden size 16; `options` are NeuronConfig keywords."""
    neuron_config = NeuronConfig(**{"torch_dtype": torch.float32, "seq_len": 16, **options})
    return InferenceConfig(neuron_config, **{**_ATTRIBUTES, **(attributes or {})})


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def full_weights(make: Callable[[], nn.Module], seed: int = 0) -> dict[str, Tensor]:
    """Random weights for the module that one rank alone would have."""
    names = sorted(make().state_dict())
    shapes = make().state_dict()
    return {
        name: 0.5 * drawn(*shapes[name].shape, seed=seed + place)
        for place, name in enumerate(names)
    }


def rank_modules(make: Callable[[], ModuleT], tp: int, full: Mapping[str, Tensor]) -> list[ModuleT]:
    """The module of each of `tp` ranks, with its piece of the full weights."""
    modules = []
    for rank in range(tp):
        with tensor_parallel(tp):
            module = make().eval()
        for name, tensor in module.state_dict(keep_vars=True).items():
            shard = shard_of(tensor)
            whole = full.get(name, tensor)
            piece = whole if shard is None else shard.cut(whole, rank, tuple(tensor.shape))
            tensor.data.copy_(piece)
        modules.append(module)
    return modules


def filled(make: Callable[[], ModuleT], seed: int = 0) -> ModuleT:
    """A module on one rank with random weights."""
    return rank_modules(make, 1, full_weights(make, seed))[0]


def empty_cache(layout: KVCacheLayout, num_rows: int) -> CacheState:
    """A cache in which nothing has been written yet: NaN, so that reading it is noticed."""
    return CacheState(*(torch.full(shape, torch.nan) for shape in layout.shapes(num_rows)))


def append_positions(
    layout: KVCacheLayout,
    state: CacheState,
    phase: Phase,
    positions: list[list[int]],
    num_slots: int = 16,
) -> tuple[CacheState, Attended]:
    """Append to a cache of one head of width 2.

    Keys and values are the positions themselves, so that slots say what they hold.
    """
    where = torch.tensor(positions, dtype=torch.int32)
    k = where.float()[:, None, :, None].expand(-1, 1, -1, 2)
    rows = torch.arange(len(positions), dtype=torch.int32)
    return layout.append(state, k, -k, StepPositions(phase, where, rows, num_slots))


def held_positions(layout: RollingCache, state: CacheState, row: int = 0) -> list[float]:
    """What the slots of a row hold, without the scratch slot; -9 where nothing is."""
    held: list[float] = state.k[row, 0, : layout.size, 0].nan_to_num(-9).tolist()
    return held


def layer_context(
    phase: Phase,
    positions: Tensor,
    cache: CacheState,
    num_slots: int,
    rows: Tensor | None = None,
) -> LayerContext:
    """The only layer of one step; `rows` are the cache rows, by default the first ones."""
    seq_ids = torch.arange(positions.shape[0], dtype=torch.int32) if rows is None else rows
    places = positions.to(torch.int32)
    return StepContext(phase, places, seq_ids, num_slots, [cache], order=InLine(places)).at(0)

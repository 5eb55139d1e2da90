"""The weights and caches of each rank, from a model whose weights nobody has read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nxdi.models.application_base import NeuronApplicationBase
from nxdi.runtime.estimate import checkpoint_dtype, checkpoint_on_meta, rank_bytes
from nxdi.runtime.weights import invoke_preshard_hooks, model_tensors
from nxdi.tools.model_info.records import CacheInfo


@dataclass(frozen=True)
class PlannedWeights:
    """wanted: the tensors of a rank; full: the checkpoint that they are cut from.

    shares: tensors that are one in the checkpoint are one in memory.
    """

    wanted: dict[str, Tensor]
    full: dict[str, Tensor]
    shares: bool

    def bytes_of(self, rank: int) -> int:
        return rank_bytes(self.wanted, self.full, rank, self.shares)


def plan_weights(app: NeuronApplicationBase, module: nn.Module) -> PlannedWeights:
    """The weights of `module`, one of `app`, as they will be loaded."""
    wanted = model_tensors(module)
    full = checkpoint_on_meta(wanted, checkpoint_dtype(app.model_path))
    if app.is_tied:
        app.update_state_dict_for_tied_weights(full)
    invoke_preshard_hooks(module, full)  # one tensor of the checkpoint may have two places
    return PlannedWeights(wanted, full, shares=not app.stores_weights)


def plan_caches(app: NeuronApplicationBase, module: Any) -> tuple[CacheInfo, ...]:
    """The caches of each rank."""
    with torch.device("meta"):
        tensors = app.program().make_caches(module)
    counts = Counter((tuple(tensor.shape), tensor.dtype) for tensor in tensors)
    return tuple(
        CacheInfo(
            count=count,
            shape=shape,
            dtype=str(dtype).removeprefix("torch."),
            num_bytes=count * torch.Size(shape).numel() * dtype.itemsize,
        )
        for (shape, dtype), count in counts.items()
    )

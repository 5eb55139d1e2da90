"""What a loaded model holds in memory: the tensors themselves, each stretch counted once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nxdi.runtime.backends.cpu.backend import CpuRank
from nxdi.runtime.backends.eager import EagerRank


def memory(tensors: list[Tensor]) -> int:
    """Bytes of tensors, those that share memory counted once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def tensors_held(rank: Any) -> list[Tensor]:
    """All that one rank of a loaded model computes with, weights and caches."""
    if isinstance(rank, EagerRank):
        models, calls = rank.modules, []
    else:  # compiled graphs are bound to tensors of theirs
        assert isinstance(rank, CpuRank)
        models, calls = rank._models, [call for step in rank._steps.values() for call in step]
    weights = [tensor for model in models.values() for tensor in model.state_dict().values()]
    return [*weights, *rank.caches, *(tensor for call in calls for tensor in call.bound)]

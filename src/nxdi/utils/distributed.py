"""The tensor-parallel group at the path where NxDI has it."""

from __future__ import annotations

from typing import Any

from nxdi.parallel_layers.parallel_state import ProcessGroup, get_tensor_model_parallel_group


def get_tp_group(config: Any) -> ProcessGroup:
    """The group that modules built now belong to."""
    return get_tensor_model_parallel_group()

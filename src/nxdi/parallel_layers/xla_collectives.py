"""The collectives as torch_xla lowers them: one HLO instruction each, with every replica group.

Registered only where torch_xla is installed. Source: torch_xla.core.xla_model.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from nxdi.parallel_layers.collectives import LIBRARY


@functools.cache
def register_xla_kernels() -> None:
    """Give the `nxdi::` collectives their XLA kernels, once.

    Raises: ImportError without torch_xla.
    """
    import torch_xla.core.xla_model as xm

    def groups(mesh: list[int], group_size: int) -> list[list[int]]:
        return [mesh[i : i + group_size] for i in range(0, len(mesh), group_size)]

    def all_reduce(x: Tensor, op: str, mesh: list[int], group_size: int) -> Tensor:
        y: Tensor = xm.all_reduce(op, x, groups=groups(mesh, group_size), pin_layout=False)
        return y

    def all_gather(x: Tensor, dim: int, mesh: list[int], group_size: int) -> Tensor:
        y: Tensor = xm.all_gather(x, dim, groups=groups(mesh, group_size), pin_layout=False)
        return y

    def reduce_scatter(x: Tensor, op: str, dim: int, mesh: list[int], group_size: int) -> Tensor:
        y: Tensor = xm.reduce_scatter(
            op, x, 1.0, dim, group_size, groups=groups(mesh, group_size), pin_layout=False
        )
        return y

    def all_to_all(
        x: Tensor, split_dim: int, concat_dim: int, mesh: list[int], group_size: int
    ) -> Tensor:
        y: Tensor = xm.all_to_all(
            x, split_dim, concat_dim, group_size, groups=groups(mesh, group_size), pin_layout=False
        )
        return y

    kernels: dict[str, Any] = {
        "all_reduce": all_reduce,
        "all_gather": all_gather,
        "reduce_scatter": reduce_scatter,
        "all_to_all": all_to_all,
    }
    for name, kernel in kernels.items():
        LIBRARY.impl(name, kernel, "XLA")

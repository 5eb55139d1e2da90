"""How the ranks' parts of a mixture's result become whole."""

from __future__ import annotations

from torch import Tensor, nn

from nxdi.config import NeuronConfig
from nxdi.errors import ConfigError
from nxdi.parallel_layers import mappings
from nxdi.parallel_layers.parallel_state import get_tensor_model_parallel_group


class Sum(nn.Module):
    """One sum over all ranks, of experts and of parts of their width alike.

    Shapes: [B, S, H] -> same.  NxDI's AR_AG and AG_AR: they differ in what is gathered between
    groups of ranks with requests of their own, and here all ranks have the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.group = get_tensor_model_parallel_group()

    def forward(self, x: Tensor) -> Tensor:
        return mappings.reduce_from_tensor_model_parallel_region(x, self.group)


class Whole(nn.Module):
    """Ranks have whole sums already."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class ScatterGather(Sum):
    """The same in two steps: each rank sums a part of every vector, and the parts are gathered.

    NxDI's RS_AG.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        if hidden_size % self.group.size():
            raise ConfigError(
                f"ep_dispatch_cc_option='RS_AG' cuts vectors into tp_degree={self.group.size()} "
                f"parts, and hidden_size={hidden_size} is not divisible by it; use 'AR_AG'"
            )

    def forward(self, x: Tensor) -> Tensor:
        part = mappings.reduce_scatter_to_sequence_parallel_region(x, -1, self.group)
        return mappings.gather_from_tensor_model_parallel_region_with_dim(part, -1, self.group)


class ScatterSequence(Sum):
    """With sequence parallelism each rank keeps the sums of its tokens.

    Shapes: [B, S, H] -> [B, S / tp, H].
    """

    def forward(self, x: Tensor) -> Tensor:
        return mappings.reduce_scatter_to_sequence_parallel_region(x, 1, self.group)


def make_combine(neuron: NeuronConfig, hidden_size: int) -> Sum:
    """What the options ask for."""
    if neuron.sequence_parallel_enabled:
        return ScatterSequence()
    if neuron.ep_dispatch_cc_option == "RS_AG":
        return ScatterGather(hidden_size)
    return Sum()

"""Whole sequences where a block needs them, when ranks hold pieces of the sequence."""

from __future__ import annotations

from torch import Tensor, nn

from nxdi.parallel_layers.mappings import gather_from_sequence_parallel_region
from nxdi.parallel_layers.parallel_state import get_tensor_model_parallel_group


class SequenceGather(nn.Module):
    """[B, S / tp, H] -> [B, S, H] when sequence parallelism is on; otherwise nothing.

    One gather serves all projections of a block, which the blocks then run on whole sequences.
    """

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.group = get_tensor_model_parallel_group() if enabled else None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.group is None else gather_from_sequence_parallel_region(x, 1, self.group)

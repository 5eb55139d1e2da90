"""Tokens sorted by expert into blocks of one size: for prefill, where arithmetic is all the time.

Source: arXiv:2211.15841, with shapes that do not depend on the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi.modules.moe.all_experts import AllExperts, find_hits
from nxdi.modules.moe.experts import Experts
from nxdi.modules.moe.modulation import Late
from nxdi.modules.moe.router import Routing
from nxdi.modules.moe.slots import of_choice, places_in_queue, run_in_slots


@dataclass(frozen=True)
class Blockwise:
    """A dispatch strategy: every block holds tokens of one expert, the last of each partly filled.

    Where the blocks hold no fewer rows than all experts for all tokens, those are computed.
    """

    modulation: Late
    block_size: int

    def __call__(self, experts: Experts, x: Tensor, routing: Routing) -> Tensor:
        num_tokens, top_k = routing.experts.shape
        num_blocks = most_blocks(num_tokens, top_k, experts.num_local, self.block_size)
        if num_blocks * self.block_size >= num_tokens * experts.num_local:
            return AllExperts(self.modulation)(experts, x, routing)
        hits = find_hits(experts, routing)
        counts = hits.any(dim=1).sum(dim=0, dtype=torch.int32)
        blocks = torch.div(counts + self.block_size - 1, self.block_size, rounding_mode="floor")
        ends = torch.cumsum(blocks, dim=0, dtype=torch.int32)
        starts = (ends - blocks) * self.block_size
        slots = of_choice(starts + places_in_queue(hits), hits)
        slots = torch.where(hits.any(dim=-1), slots, -1)
        numbers = torch.arange(num_blocks, dtype=torch.int32, device=x.device)
        which = (numbers.unsqueeze(1) >= ends).sum(dim=1, dtype=torch.int32)
        which = which.clamp(max=experts.num_local - 1)
        groups = num_blocks, self.block_size
        return run_in_slots(experts, self.modulation, x, routing, slots, groups, which)


def most_blocks(num_tokens: int, top_k: int, num_experts: int, block_size: int) -> int:
    """Blocks that suffice, however the tokens choose."""
    choices = num_tokens * min(top_k, num_experts)
    begun = min(num_experts, choices)  # each with one token at least
    return begun + (choices - begun) // block_size

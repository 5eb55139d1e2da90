"""Tokens put into slots, groups of which share an expert, and their results taken out again."""

from __future__ import annotations

import torch
from torch import Tensor

from nxdi.modules.moe.experts import ExpertGroups
from nxdi.modules.moe.modulation import Late
from nxdi.modules.moe.router import Routing


def places_in_queue(hits: Tensor) -> Tensor:
    """How many earlier tokens chose the same expert, int32 [T, num_local]; hits as `find_hits`."""
    return torch.cumsum(hits.any(dim=1), dim=0, dtype=torch.int32) - 1


def of_choice(values: Tensor, hits: Tensor) -> Tensor:
    """Of each choice its expert's value, int32 [T, top_k]; 0 for an expert of another rank.

    values: int32 [num_local], or [T, num_local] where they differ by token.
    """
    by_token = values.unsqueeze(-2) if values.dim() == 2 else values
    return (hits * by_token).sum(dim=-1, dtype=torch.int32)


def run_in_slots(
    experts: ExpertGroups,
    modulation: Late,
    x: Tensor,
    routing: Routing,
    slots: Tensor,
    groups: tuple[int, int],
    which: Tensor | None = None,
) -> Tensor:
    """This rank's part of the sum over each token's choices. x [T, H] -> [T, H].

    slots: int32 [T, top_k], no slot twice; -1: the choice is left out. groups: how many, of how
    many slots each. which: the expert of each group, as `Experts` takes it.
    """
    num_tokens, top_k = slots.shape
    num_slots = groups[0] * groups[1]
    taken = slots >= 0
    # What is left out meets in one more slot, which nobody reads.
    places = torch.where(taken, slots, num_slots).flatten()
    choices = torch.arange(num_tokens * top_k, dtype=torch.int32, device=x.device)
    nobody = torch.full((num_slots + 1,), choices.shape[0], dtype=torch.int32, device=x.device)
    choice_in = torch.index_put(nobody, (places,), choices)[:num_slots]
    token_in = torch.div(choice_in, top_k, rounding_mode="floor")
    padded = torch.cat([x, torch.zeros_like(x[:1])])
    weight = routing.weights * taken
    in_slot = torch.cat([weight.flatten(), torch.zeros_like(weight.flatten()[:1])])[choice_in]
    rows = modulation.before(padded[token_in], in_slot.unsqueeze(-1))
    y = experts(rows.view(*groups, -1), which).reshape(num_slots, -1)
    of_choices = y[torch.where(taken, slots, 0)]
    return modulation.after(of_choices, weight.unsqueeze(-1), taken.unsqueeze(-1)).sum(dim=1)

"""Heads beside lm_head that propose the tokens after the next one (Medusa)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nxdi.config import InferenceConfig
from nxdi.config.token_tree import TreeShape
from nxdi.parallel_layers.layers import ColumnParallelLinear


class ResidualBlock(nn.Module):
    """x + SiLU(linear(x)). [R, 1, hidden_size] -> same."""

    def __init__(self, config: InferenceConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.linear = ColumnParallelLinear(
            size,
            size,
            bias=True,
            gather_output=True,
            dtype=config.neuron_config.torch_dtype,
            pad=True,
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.linear(x)[..., : x.shape[-1]])


class CandidateHeads(nn.ModuleList):
    """Head h proposes the token h + 2 places on: some residual blocks and an lm_head of its own.

    Weights are named as published: `{head}.{block}.linear.weight` and `.bias`, and
    `{head}.{number of blocks}.weight` of the lm_head. Source: arXiv:2401.10774 section 2.1.1.
    num_candidates: the likeliest tokens of each head that are returned.
    """

    def __init__(self, config: InferenceConfig, num_candidates: int) -> None:
        neuron = config.neuron_config
        super().__init__(
            nn.Sequential(
                *(ResidualBlock(config) for _ in range(config.medusa_num_layers)),
                ColumnParallelLinear(
                    config.hidden_size,
                    config.vocab_size,
                    bias=False,
                    gather_output=True,
                    dtype=neuron.torch_dtype,
                    pad=True,
                ),
            )
            for _ in range(neuron.num_medusa_heads)
        )
        self.vocab_size, self.num_candidates = config.vocab_size, num_candidates

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """Of normalised activations [R, 1, hidden_size]: candidates int32 [R, heads, K]."""
        logits = torch.cat([head(x)[..., : self.vocab_size] for head in self], dim=1)
        best = torch.topk(logits.float(), self.num_candidates, dim=-1).indices
        return {"candidates": best.to(torch.int32)}


class NoHeads(nn.Module):
    """A model without them."""

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        return {}


def make_candidate_heads(config: InferenceConfig) -> CandidateHeads | NoHeads:
    """The heads that the options ask for."""
    neuron = config.neuron_config
    if not neuron.is_medusa:
        return NoHeads()
    shape = neuron.tree_shape
    return CandidateHeads(config, shape.num_candidates if isinstance(shape, TreeShape) else 1)

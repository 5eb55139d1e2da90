"""Sampling inside the graph: greedy, or top-k, top-p and temperature per row, without a hidden cap.

Thresholds are found by radix selection on the bits of the logits: sixteen counting passes instead
of a sort, no cap on top_k, and only operations that every backend lowers.  Ties at a threshold are
all kept, as Hugging Face's top-k does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nxdi.config import OnDeviceSamplingConfig
from nxdi.kernels.ops import ArgmaxCall
from nxdi.kernels.reference.argmax import ARGMAX
from nxdi.kernels.registry import choose

_RADIX_BITS = 4
_KEY_BITS = 32


class GreedySampler:
    """The most likely token of each row; the first one on a tie."""

    def __call__(
        self, logits: Tensor, sampling_params: Tensor | None, uniform: Tensor | None
    ) -> Tensor:
        return most_likely(logits)


@dataclass(frozen=True)
class DynamicSampler:
    """Per-row sampling from parameters that are graph inputs.

    Shapes: logits [B, V]; sampling_params float32 [B, 3] = (top_k, top_p, temperature); uniform
    float32 [B] in [0, 1) -> tokens int32 [B].  top_k <= 0 means no limit; temperature 0 or top_k 1
    means greedy.
    """

    def __call__(
        self, logits: Tensor, sampling_params: Tensor | None, uniform: Tensor | None
    ) -> Tensor:
        assert sampling_params is not None
        assert uniform is not None
        top_k, top_p, temperature = sampling_params.unbind(dim=-1)
        logits = logits.float()
        is_greedy = (temperature == 0) | (top_k == 1)
        # From the largest downwards, so that a tiny temperature leads to -inf and never to inf.
        centred = logits - logits.amax(dim=-1, keepdim=True)
        scaled = centred / torch.where(temperature == 0, 1.0, temperature).unsqueeze(-1)
        drawn = draw_token(_nucleus(_top_k_probabilities(scaled, top_k), top_p), uniform)
        return torch.where(is_greedy, most_likely(logits), drawn)


def most_likely(logits: Tensor) -> Tensor:
    """The token with the largest logit, the first on a tie. [B, V] -> int32 [B]."""
    call = ArgmaxCall(tuple(logits.shape), logits.dtype)
    tokens: Tensor = choose(ARGMAX, call).run(logits, call)
    return tokens


def make_sampler(config: OnDeviceSamplingConfig) -> GreedySampler | DynamicSampler:
    """The sampler that a configuration asks for."""
    return DynamicSampler() if config.do_sample or config.dynamic else GreedySampler()


def _sortable(x: Tensor) -> Tensor:
    """float32 as int32 keys that sort like the floats."""
    bits = x.view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _threshold(keys: Tensor, weights: Tensor, need: Tensor) -> Tensor:
    """The largest key t of each row with sum(weights[keys >= t]) >= need.

    keys, weights [B, V]; need [B] -> [B, 1].
    """
    found = torch.full_like(need, torch.iinfo(torch.int32).min, dtype=torch.int32)
    digits = torch.arange(1, 2**_RADIX_BITS, dtype=torch.int32, device=keys.device)
    for shift in range(_KEY_BITS - _RADIX_BITS, -1, -_RADIX_BITS):
        candidates = found.unsqueeze(-1) + (digits << shift)
        reached = torch.where(
            keys.unsqueeze(1) >= candidates.unsqueeze(2), weights.unsqueeze(1), 0.0
        ).sum(dim=-1)
        digit = (reached >= need.unsqueeze(-1)).sum(dim=-1, dtype=torch.int32)
        found = found + (digit << shift)
    return found.unsqueeze(-1)


def _top_k_probabilities(logits: Tensor, top_k: Tensor) -> Tensor:
    """Softmax over the top_k largest logits of each row; zero elsewhere."""
    keys = _sortable(logits)
    vocabulary = float(logits.shape[-1])
    need = torch.where(top_k <= 0, vocabulary, top_k).clamp(max=vocabulary)
    kept = keys >= _threshold(keys, torch.ones_like(logits), need)
    lowest = logits.new_full((), torch.finfo(torch.float32).min)
    return torch.softmax(torch.where(kept, logits, lowest), dim=-1) * kept


def _nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """The smallest set of most likely tokens whose probability reaches top_p; zero elsewhere.

    Source: arXiv:1904.09751.
    """
    keys = _sortable(probabilities)
    # No sum reaches infinity, so top_p 1 keeps everything, whatever rounding did to the sum.
    need = torch.where(top_p >= 1, torch.inf, top_p)
    return torch.where(keys >= _threshold(keys, probabilities, need), probabilities, 0.0)


def draw_token(weights: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the running sum passes uniform * total. [B, V], [B] -> [B]."""
    running = weights.cumsum(dim=-1)
    target = uniform.unsqueeze(-1) * running[:, -1:]
    index = (running <= target).sum(dim=-1, dtype=torch.int32)
    # Rounding may pass the last token with weight; step back to it.
    places = torch.arange(weights.shape[-1], dtype=torch.int32, device=weights.device)
    last = torch.where(weights > 0, places, 0).amax(dim=-1)
    return torch.minimum(index, last)

"""Scales that cut off the largest weights of a row where the others gain more by it."""

from __future__ import annotations

import torch
from torch import Tensor

# Of the scale with which nothing is cut off.
_TRIED = tuple(percent / 100 for percent in range(98, 68, -2))
_BLOCK = 2**17  # values that are searched at a time: what a core's cache holds


def least_squares(rows: Tensor, scale: Tensor, bound: float) -> Tensor:
    """Of the scales given and smaller ones, those of least squared error.

    Shapes: rows [..., K] float32, scale [..., 1], with which the largest value of a row becomes
    `bound`, the largest integer that is stored -> [..., 1].
    """
    num_rows = max(1, _BLOCK // rows.shape[-1])
    blocks = zip(
        rows.flatten(0, -2).split(num_rows), scale.flatten(0, -2).split(num_rows), strict=True
    )
    return torch.cat([_search(*block, bound) for block in blocks]).view(scale.shape)


def _search(rows: Tensor, scale: Tensor, bound: float) -> Tensor:
    best, least = scale, _squared_error(rows, scale, bound)
    for ratio in _TRIED:
        error = _squared_error(rows, scale * ratio, bound)
        is_less = error < least
        best, least = torch.where(is_less, scale * ratio, best), torch.where(is_less, error, least)
    return best


def _squared_error(rows: Tensor, scale: Tensor, bound: float) -> Tensor:
    stored = (rows / scale).round_().clamp_(-bound, bound)
    return stored.mul_(scale).sub_(rows).pow_(2).sum(-1, keepdim=True)

"""Whether counts fit a distribution."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_P = 1e-3  # a right distribution fails once in a thousand seeds; the seeds are fixed


def p_value(counts: Tensor, probabilities: Tensor) -> float:
    """The chance of a fit as bad as this one.

    Shapes: counts [n], probabilities [n], which sum to 1; what is impossible must not occur.
    """
    is_possible = probabilities > 0
    assert not bool(counts[~is_possible].any())
    counts, probabilities = counts[is_possible].double(), probabilities[is_possible].double()
    expected = probabilities * counts.sum()
    assert float(expected.min()) >= 5, "too few draws for this many cells"
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))

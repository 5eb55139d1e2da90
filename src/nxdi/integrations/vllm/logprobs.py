"""The log-probabilities of a step as vLLM takes them: a row per token, request after request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from vllm.v1.outputs import LogprobsLists


def joined(
    found: Mapping[tuple[int, int], LogprobsLists], num_tokens: Sequence[int]
) -> LogprobsLists | None:
    """One table of all tokens; None if there is nothing to report.

    found: of single tokens, ids and logarithms [k + 1] and the rank, by request and place. Rows
    that nobody asked for are zeros. num_tokens: of each request.
    """
    if not found:
        return None
    starts = [0, *np.cumsum(num_tokens).tolist()]
    width = max(len(token.logprobs) for token in found.values())
    ids = np.zeros((starts[-1], width), np.int64)
    values = np.zeros((starts[-1], width), np.float32)
    ranks = np.zeros(starts[-1], np.int64)
    for (request, place), token in found.items():
        row, size = starts[request] + place, len(token.logprobs)
        ids[row, :size], values[row, :size] = token.logprob_token_ids, token.logprobs
        ranks[row] = token.sampled_token_ranks
    return LogprobsLists(ids, values, ranks, starts)

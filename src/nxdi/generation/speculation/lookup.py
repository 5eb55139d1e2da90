"""Prompt lookup: what followed the last tokens when they occurred before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nxdi.errors import ConfigError
from nxdi.generation.speculation.proposals import Proposal, Rule, Seen, Wanted
from nxdi.models.causal_lm import NeuronBaseForCausalLM


class PromptLookup:
    """Proposes what followed the longest recent n-gram that occurred before, in prompt or answer.

    Worth its while where answers repeat their prompts: summaries, edits, code.
    num_tokens: at most so many at a time; None: as many as a step verifies.
    max_ngram: tokens at the end of a sequence that are looked up; fewer where these are new, but
    `min_ngram` at least. Where a step of several tokens costs much more than one of one, 3 pays
    better than 1: what followed a single token before seldom follows it again.
    Source: transformers' prompt_lookup_num_tokens and max_matching_ngram_size; vLLM's
    prompt_lookup_min.
    Raises: ConfigError for a number below 1, or `min_ngram` above `max_ngram`.
    """

    draft = None

    def __init__(
        self, num_tokens: int | None = None, max_ngram: int = 3, min_ngram: int = 1
    ) -> None:
        given = {"num_tokens": num_tokens, "max_ngram": max_ngram, "min_ngram": min_ngram}
        for name, value in given.items():
            if value is not None and value < 1:
                raise ConfigError(
                    f"prompt lookup with {name}={value} proposes nothing; use 1 or more"
                )
        if min_ngram > max_ngram:
            raise ConfigError(
                f"min_ngram={min_ngram} is above max_ngram={max_ngram}, so nothing is looked up; "
                "lower one or raise the other"
            )
        self.num_tokens, self.max_ngram, self.min_ngram = num_tokens, max_ngram, min_ngram

    def check(self, target: NeuronBaseForCausalLM) -> None:
        """Raises: ConfigError if a step of `target` verifies fewer tokens than are asked for."""
        length = target.neuron_config.num_verified
        if self.num_tokens is not None and self.num_tokens >= length:
            raise ConfigError(
                f"prompt lookup of {self.num_tokens} tokens, but speculation_length={length} "
                f"verifies {length - 1} besides each row's last token; ask for fewer, or raise "
                "speculation_length and compile again"
            )

    def watch(self, seen: Sequence[Seen]) -> None:
        """The tokens say it all."""

    def propose(self, rows: Sequence[Wanted], rule: Rule) -> list[Proposal]:
        return [Proposal(self._continuation(row.sequence.tokens, row.most)) for row in rows]

    def _continuation(self, tokens: Sequence[int], most: int) -> list[int]:
        most = most if self.num_tokens is None else min(most, self.num_tokens)
        if most < 1:
            return []
        array = np.asarray(tokens)
        for size in range(min(self.max_ngram, len(array) - 1), self.min_ngram - 1, -1):
            found = _ends(array, size)
            if len(found):
                # The latest with enough behind it; else the first, which has the most.
                enough = found[found + most <= len(array)]
                start = enough[-1] if len(enough) else found[0]
                continuation: list[int] = array[start : start + most].tolist()
                return continuation
        return []


def _ends(
    tokens: np.ndarray[tuple[int], np.dtype[np.int64]], size: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The places after each earlier occurrence of the last `size` tokens."""
    matches = np.ones(len(tokens) - size, dtype=bool)
    for offset in range(size):
        matches &= tokens[offset : offset + len(matches)] == tokens[len(tokens) - size + offset]
    return np.flatnonzero(matches) + size

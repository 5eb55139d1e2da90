"""How often each collective occurs in a step of a tiny model on several ranks."""

from __future__ import annotations

from collections import Counter


def collectives_of_step(family: str, num_layers: int) -> Counter[str]:
    """Two sums per layer; embeddings and logits are gathered; some families need more."""
    usual = Counter(all_reduce=2 * num_layers, all_gather=2)
    particular: dict[str, Counter[str]] = {
        # The mean square over all heads of queries, and of keys.
        "olmo2": Counter(all_reduce=2 * num_layers),
        "olmoe": Counter(all_reduce=2 * num_layers),
        # Learned positions.
        "gpt2": Counter(all_gather=1),
    }
    return usual + particular.get(family, Counter())

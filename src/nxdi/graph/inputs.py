"""Declared graph inputs: planning, padding and tracing all follow from these declarations."""

from __future__ import annotations

from dataclasses import dataclass

# Symbolic dimensions an input may have; a number is itself.
# CHOSEN: tokens of a row after which another one is chosen.
BATCH, TOKENS, BLOCKS, CHOSEN = "batch", "tokens", "blocks", "chosen"


@dataclass(frozen=True)
class InputSpec:
    """One named graph input: dims are symbolic or fixed, `fill` pads it."""

    name: str
    dims: tuple[str | int, ...]
    dtype: str
    fill: float

    def shape(self, batch_size: int, num_tokens: int, num_blocks: int = 0) -> tuple[int, ...]:
        sizes = {BATCH: batch_size, TOKENS: num_tokens, BLOCKS: num_blocks, CHOSEN: num_tokens}
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.dims)


INPUT_IDS = InputSpec("input_ids", (BATCH, TOKENS), "int32", 0)
# -1 marks padding: it is never attended to and never written to a cache slot that anything reads.
POSITION_IDS = InputSpec("position_ids", (BATCH, TOKENS), "int32", -1)
SEQ_IDS = InputSpec("seq_ids", (BATCH,), "int32", 0)
# The blocks of a paged cache that hold a row's tokens, in order; -1 = none.
BLOCK_TABLE = InputSpec("block_table", (BATCH, BLOCKS), "int32", -1)
# Columns: top_k (<= 0: no limit), top_p, temperature (0: greedy). NxDI's order.
SAMPLING_PARAMS = InputSpec("sampling_params", (BATCH, 3), "float32", 1)
# One number in [0, 1) per row, drawn on the host from the row's own seed: graphs hold no random
# state.
UNIFORM = InputSpec("uniform", (BATCH,), "float32", 0.5)
# The same where a token is chosen after each of a row's tokens.
UNIFORMS = InputSpec("uniform", (BATCH, CHOSEN), "float32", 0.5)
# Of the tokens of a row that are a tree: the place of each in its sequence, and which it sees.
TOKEN_PLACES = InputSpec("token_places", (BATCH, TOKENS), "int32", -1)
TREE_MASK = InputSpec("tree_mask", (BATCH, TOKENS, TOKENS), "int32", 0)

"""How long prompts are cut, under NxDI's names."""

from __future__ import annotations

from dataclasses import dataclass

from nxdi.config.keywords import KeywordConfig


@dataclass(init=False, repr=False, eq=False)
class ChunkedPrefillConfig(KeywordConfig):
    """With it, a prompt takes steps of at most `max_context_length` tokens.

    The other options tune NxDI's kernel and have no effect: rows are not packed into one.
    Raises: ConfigError for an unknown keyword.
    """

    max_num_seqs: int = 0
    tkg_model_enabled: bool = True
    kernel_q_tile_size: int = 128
    kernel_kv_tile_size: int = 1024

"""Small shared vocabulary: phases of generation."""

from __future__ import annotations

from enum import Enum


class Phase(str, Enum):
    """What a graph is for. A field of the graph, never guessed from a tensor's shape."""

    PREFILL = "prefill"
    DECODE = "decode"
    EXTEND = "extend"  # several more tokens for rows that have a past

    @property
    def tag(self) -> str:
        """NxDI's name for the sub-model of this phase, used in artefacts.

        To NxDI a prefill over a cached prefix is a context encoding, too.
        """
        return _TAGS[self]


_TAGS = {
    Phase.PREFILL: "context_encoding_model",
    Phase.DECODE: "token_generation_model",
    Phase.EXTEND: "context_encoding_model",
}

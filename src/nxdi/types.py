"""Small shared vocabulary: phases of generation."""

from __future__ import annotations

from enum import Enum


class Phase(str, Enum):
    """What a graph is for. A field of the graph, never guessed from a tensor's shape."""

    PREFILL = "prefill"
    DECODE = "decode"
    EXTEND = "extend"  # several more tokens for rows that have a past
    VERIFY = (
        "verify"  # as extend, with the logits after each of them, and few enough to read in place
    )

    @classmethod
    def of(cls, start: int, num_tokens: int) -> Phase:
        """The phase of a row's new tokens, which begin at position `start`."""
        if start == 0:
            return cls.PREFILL
        return cls.DECODE if num_tokens == 1 else cls.EXTEND

    @property
    def is_decoding(self) -> bool:
        """Whether running rows go on by few tokens, in graphs whose row r is cache row r."""
        return self in (Phase.DECODE, Phase.VERIFY)

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
    Phase.VERIFY: "speculation_model",
}

"""Text from tokens as they come: whole characters only, and nothing past a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"  # what a tokenizer decodes a part of a character to


class TextStream:
    """The text of one request, one token at a time.

    The pieces joined are what decoding all tokens at once gives, cut before the first stop string.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self.text = ""  # handed out
        self.is_stopped = False
        self._tokenizer, self._stop = tokenizer, stop
        self._held = ""  # may be the start of a stop string
        # Decoded anew each time: the tokens of the last piece, since a tokenizer may join what
        # follows to them, and those after it, which may end within a character.
        self._ids: list[int] = []
        self._num_before = 0

    def push(self, token: int) -> str:
        """The text that this token adds, as far as it is certain."""
        self._ids.append(token)
        piece = self._piece()
        if piece.endswith(_INCOMPLETE):
            return ""
        if piece:
            del self._ids[: self._num_before]
            self._num_before = len(self._ids)
        return self._hand_out(piece, keeps=True)

    def end(self) -> str:
        """What was held back, when no token follows."""
        return "" if self.is_stopped else self._hand_out(self._piece(), keeps=False)

    def _piece(self) -> str:
        """The text of the tokens after those of the last piece."""
        before = self._decode(self._ids[: self._num_before])
        return self._decode(self._ids)[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _hand_out(self, piece: str, keeps: bool) -> str:
        text = self._held + piece
        found = [at for at in map(text.find, self._stop) if at >= 0]
        self.is_stopped = bool(found)
        cut = min(found) if found else len(text) - (self._num_unsure(text) if keeps else 0)
        self._held = text[cut:]
        self.text += text[:cut]
        return text[:cut]

    def _num_unsure(self, text: str) -> int:
        """Characters at the end that a stop string may start with."""
        longest = max(map(len, self._stop), default=1) - 1
        for number in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-number:]) for stop in self._stop):
                return number
        return 0

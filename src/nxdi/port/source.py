"""A Python source file as text and syntax tree, with the places of its nodes in the text.

Nothing is imported or executed.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from typing import NamedTuple

from nxdi.errors import UnsupportedError

_NEWLINE = re.compile(r"\r\n|\r|\n")  # what ends a line for Python's parser


class Edit(NamedTuple):
    """Replace text[start:end] with `new`."""

    start: int
    end: int
    new: str


class Source:
    """The text of a file and its tree. Raises: UnsupportedError if it is not Python."""

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the source, such as invalid escapes
                self.tree = ast.parse(text)
        except SyntaxError as error:
            raise UnsupportedError(
                f"line {error.lineno}: not valid Python ({error.msg}); correct it first"
            ) from error
        except (ValueError, RecursionError, MemoryError) as error:  # null bytes, deep nesting
            raise UnsupportedError(f"not valid Python ({error}); correct it first") from error
        self._lines = [0, *(match.end() for match in _NEWLINE.finditer(text))]

    def offset(self, line: int, column: int) -> int:
        """Index into the text. line counts from 1; column is in UTF-8 bytes, as in `ast`."""
        start = self._lines[line - 1]
        return start + len(self.text[start : start + column].encode()[:column].decode())

    def start(self, node: ast.stmt | ast.expr | ast.alias) -> int:
        return self.offset(node.lineno, node.col_offset)

    def end(self, node: ast.expr) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.offset(node.end_lineno, node.end_col_offset)

    def edited(self, edits: list[Edit]) -> str:
        """The text with all edits made; they do not overlap."""
        pieces, position = [], 0
        for start, end, new in sorted(edits):
            pieces += [self.text[position:start], new]
            position = end
        return "".join([*pieces, self.text[position:]])


def decode(data: bytes) -> tuple[str, str]:
    """Text of a source file, and its encoding: UTF-8 unless the file declares another.

    Raises: UnsupportedError if the bytes are not in that encoding.
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
        is_exact = text.encode(encoding) == data
    except (SyntaxError, UnicodeError) as error:
        raise UnsupportedError(f"cannot be decoded ({error}); save it as UTF-8") from error
    if not is_exact:
        raise UnsupportedError(f"does not survive decoding as {encoding}; save it as UTF-8")
    return text, encoding

"""Reading sources: encodings, syntax errors, places."""

from __future__ import annotations

import ast
import codecs
import warnings

import pytest

from nxdi.errors import UnsupportedError
from nxdi.port.source import Edit, Source, decode


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("é = 1\r\n".encode(), "é = 1\r\n"),
        (codecs.BOM_UTF8 + b"x = 1\n", "x = 1\n"),
        (b"# -*- coding: latin-1 -*-\nx = '\xe9'\n", "# -*- coding: latin-1 -*-\nx = 'é'\n"),
        (b"", ""),
    ],
    ids=["utf-8", "byte order mark", "latin-1", "empty"],
)
def test_text_returns_to_the_same_bytes(data: bytes, text: str) -> None:
    assert decode(data)[0] == text
    assert text.encode(decode(data)[1]) == data


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"x = '\xe9'", "cannot be decoded"),
        (b"# coding: no-such-code\n", "unknown encoding"),
        ("x = 1".encode("utf-16"), "cannot be decoded"),
        (b"# coding: utf-7\nx = '+AGE-'\n", "does not survive"),
    ],
    ids=["latin-1 undeclared", "unknown", "utf-16", "not exact"],
)
def test_undecodable_bytes_are_refused(data: bytes, what: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{what}.*save it as UTF-8"):
        decode(data)


@pytest.mark.parametrize(
    "text", ["print 1", "def f(:", "x = '\0'", "(" * 5000, "-" * 200_000 + "1", "  x"]
)
def test_what_is_not_python_is_refused(text: str) -> None:
    with pytest.raises(UnsupportedError, match=r"not valid Python.*correct it first"):
        Source(text)


def test_warnings_about_the_source_are_not_shown() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(Source(r"x = '\d'").tree, ast.Module)


def test_edits_apply_to_places_of_nodes() -> None:
    source = Source("é = '\U0001f600'; b = (c)\r\nd = e")
    names = [node for node in ast.walk(source.tree) if isinstance(node, ast.Name)]
    edits = [Edit(source.start(node), source.start(node) + 1, node.id * 2) for node in names]
    assert source.edited(edits) == "éé = '\U0001f600'; bb = (cc)\r\ndd = ee"

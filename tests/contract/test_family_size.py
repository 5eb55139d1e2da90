"""A model is a table of contents: a family takes few lines, whatever it differs in."""

from __future__ import annotations

import importlib
import inspect

import pytest

from nxdi.models.registry import ARCHITECTURES

MOST_LINES = 150


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_family_is_short(architecture: str) -> None:
    module = importlib.import_module(ARCHITECTURES[architecture].split(":")[0])
    num_lines = len(inspect.getsource(module).splitlines())
    print(f"{architecture}: {num_lines} lines")
    assert num_lines <= MOST_LINES

"""Numbers on a command line, refused by argparse where they are out of range."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any


def within(kind: type[float], low: float, high: float = sys.float_info.max) -> Callable[..., Any]:
    """A `type` for argparse: numbers from `low` to `high`, both included."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            limit = f" and at most {high}" if high < sys.float_info.max else ""
            raise argparse.ArgumentTypeError(f"{text} is out of range: at least {low}{limit}")
        return value

    parse.__name__ = "number"  # argparse names it when the text is none
    return parse

"""Which lines and branches of a kernel have run.

A kernel is traced once per set of compile-time arguments, so a line that no test reaches was never
checked at all.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any


@dataclass
class Coverage:
    """What ran of one function. Lines are numbers in its file."""

    file: str
    lines: set[int]
    # Per branching line: the first line of its body.
    branches: dict[int, int]
    ran: set[int] = field(default_factory=set)
    arcs: set[tuple[int, int]] = field(default_factory=set)

    @property
    def missing_lines(self) -> list[int]:
        return sorted(self.lines - self.ran)

    @property
    def missing_branches(self) -> list[tuple[int, bool]]:
        """Lines of conditions that were never true, or never false."""
        missing = []
        for line, body in self.branches.items():
            follows = {target for source, target in self.arcs if source == line}
            if body not in follows:
                missing.append((line, True))
            if not follows - {body}:
                missing.append((line, False))
        return sorted(missing)

    def __str__(self) -> str:
        number, total = len(self.lines & self.ran), len(self.lines)
        lines = f"{number} of {total} lines"
        branches = 2 * len(self.branches)
        taken = branches - len(self.missing_branches)
        return f"{lines}, {taken} of {branches} branches; missing lines {self.missing_lines}"


def _map(function: Callable[..., Any]) -> Coverage:
    source, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(source)))
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    lines, branches = set(), {}
    for node in (inner for item in definition.body for inner in ast.walk(item)):
        if not isinstance(node, ast.stmt) or _is_docstring(node):
            continue
        lines.add(node.lineno + first - 1)
        if isinstance(node, (ast.If, ast.For, ast.While)):
            branches[node.lineno + first - 1] = node.body[0].lineno + first - 1
    return Coverage(inspect.getsourcefile(function) or "", lines, branches)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


@contextmanager
def measure_coverage(kernel: Any) -> Iterator[Coverage]:
    """What runs of `kernel` within the block, however often it is simulated there.

    with measure_coverage(rmsnorm) as coverage:
        simulate(rmsnorm)(x, gamma)
    """
    function = getattr(kernel, "function", kernel)
    coverage = _map(function)
    code = function.__code__

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code is not code:
            return None
        before = frame.f_lineno

        def step(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal before
            if event in ("line", "return"):
                target = frame.f_lineno if event == "line" else -1
                coverage.arcs.add((before, target))
                before = frame.f_lineno
                coverage.ran.add(before)
            return step

        return step

    outer = sys.gettrace()
    sys.settrace(enter)
    threading.settrace(enter)
    try:
        yield coverage
    finally:
        sys.settrace(outer)
        threading.settrace(outer)

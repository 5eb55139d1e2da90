"""What NKI compilers up to 0.6 reject though Python, and so the simulator, accepts it.

Up to 0.6 a kernel was parsed, not run; 0.7 runs it. The restrictions are those of the NKI
language guide of 0.3 to 0.6.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One construct that is not portable."""

    rule: str
    line: str
    message: str

    def __str__(self) -> str:
        return f"{self.line}: {self.message} [{self.rule}]"


def lint(kernel: Any) -> list[Finding]:
    """The constructs in a kernel's source that compilers up to NKI 0.6 reject."""
    function = getattr(kernel, "function", kernel)
    source, first = inspect.getsourcelines(function)
    file = inspect.getsourcefile(function)
    (tree,) = ast.parse(textwrap.dedent("".join(source))).body
    assert isinstance(tree, ast.FunctionDef)
    found = [*_signature(tree), *_body(tree), *_globals(tree, function)]
    return [
        Finding(rule, f"{file}:{node.lineno + first - 1}", message)
        for rule, node, message in sorted(found, key=lambda item: item[1].lineno)
    ]


_Found = tuple[str, Any, str]


def _signature(tree: ast.FunctionDef) -> Iterator[_Found]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            yield from _parameters(node)


def _parameters(node: ast.FunctionDef | ast.Lambda) -> Iterator[_Found]:
    given = node.args
    if given.kwonlyargs or given.vararg or given.kwarg:
        yield "parameters", node, "no keyword-only or variable parameters; name each one"
    for default in given.defaults:
        if isinstance(default, (ast.List, ast.Dict, ast.Set)):
            yield "list-argument", default, "no lists as arguments; use a tuple"


def _body(tree: ast.FunctionDef) -> Iterator[_Found]:
    for node in ast.walk(tree):
        for kinds, rule, message in _REJECTED:
            if isinstance(node, kinds):
                yield rule, node, message
        if isinstance(node, ast.Compare):
            yield from _comparison(node)
        elif isinstance(node, ast.ClassDef):
            yield from _class(node)
        elif isinstance(node, ast.Dict):
            yield from _dict(node)
        elif isinstance(node, ast.For) and not isinstance(node.target, ast.Name):
            yield "for-target", node, "a loop has one simple variable; unpack in the body"
        elif isinstance(node, ast.Attribute) and node.attr == "dynamic_range":
            yield "dynamic-range", node, "dynamic_range was removed in 0.7; use nl.fori_loop"


_REJECTED: tuple[tuple[Any, str, str], ...] = (
    ((ast.Yield, ast.YieldFrom, ast.GeneratorExp), "generator", "no generators; build a tuple"),
    ((ast.Try, ast.Raise), "exception", "no exceptions; use assert"),
    ((ast.Import, ast.ImportFrom), "import", "no imports in a kernel; import in the module"),
    ((ast.Global, ast.Nonlocal), "global", "no assignment to outer names; return the value"),
    (ast.NamedExpr, "walrus", "no assignment in an expression; assign before"),
)


def _comparison(node: ast.Compare) -> Iterator[_Found]:
    if any(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops):
        yield "identity", node, "no `is`; compare with == or !="


def _class(node: ast.ClassDef) -> Iterator[_Found]:
    bases = {getattr(base, "attr", getattr(base, "id", "")) for base in node.bases}
    if "NKIObject" not in bases:
        yield "class", node, f"class {node.name} must derive from nl.NKIObject"


def _dict(node: ast.Dict) -> Iterator[_Found]:
    for key in node.keys:
        is_text = isinstance(key, ast.Constant) and isinstance(key.value, str)
        if key is not None and isinstance(key, ast.Constant) and not is_text:
            yield "dict-key", node, f"key {key.value!r} is not a string; use string keys"


def _globals(tree: ast.FunctionDef, function: Any) -> Iterator[_Found]:
    """Names of mutable objects outside of the kernel."""
    outer = inspect.getclosurevars(function)
    mutable = {
        name
        for name, value in {**outer.globals, **outer.nonlocals}.items()
        if isinstance(value, (list, dict, set))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in mutable:
            yield "mutable-global", node, f"{node.id} outside of the kernel may change; pass it"

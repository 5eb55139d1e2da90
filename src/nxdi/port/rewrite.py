"""Renaming the two import roots in a source; everything else stays as it is, byte for byte.

Renamed are imports, uses of a root that `import root` binds, and strings that hold a module path.
Comments and prose are left alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from nxdi.errors import UnsupportedError
from nxdi.port.source import Edit, Source

NEW_ROOT = "nxdi"
ROOTS = ("neuronx_distributed_inference", "neuronx_distributed")
_ROOT = r"(?P<root>neuronx_distributed(?:_inference)?)"
_FROM = re.compile(rf"from(?:[ \t\f]|\\(?:\r\n|\r|\n))+{_ROOT}\b")
_NAME = re.compile(rf"{_ROOT}\b")
_MODULE_PATH = re.compile(rf"{_ROOT}(?:\.[^\W\d]\w*)+(?::\w+)?")
_LITERAL = re.compile(rf"[a-zA-Z]{{0,2}}(?:'''|\"\"\"|'|\"){_ROOT}\b")

# Nodes that bind their `name`.
_NAMED = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
    *(ast.ExceptHandler, ast.MatchAs, ast.MatchStar),
)

# What is given modules by name, in importlib, pytest and unittest.mock.
_FUNCTIONS = {"__import__", "find_spec", "import_module", "importorskip", "patch"}
_METHODS = _FUNCTIONS | {"delitem", "dict", "multiple", "setitem"}


def rewrite(text: str) -> str:
    """The source with its import roots renamed; doing it twice changes nothing more.

    Raises: UnsupportedError if it is not valid Python, or if a root's name is also used for
    something else.
    """
    if not any(root in text for root in ROOTS):
        return text
    source = Source(text)
    return source.edited([*_imports(source), *_uses(source), *_strings(source)])


def is_root(module: str | None) -> bool:
    """Whether an absolute import of `module` is one of the two libraries."""
    return module is not None and module.partition(".")[0] in ROOTS


def _renamed(source: Source, place: int, pattern: re.Pattern[str], name: str) -> Iterator[Edit]:
    """Rename the root of the dotted `name` at `place`, if it is written there in plain letters."""
    match = pattern.match(source.text, place)
    if match is not None and match["root"] == name.partition(".")[0]:
        yield Edit(*match.span("root"), NEW_ROOT)


def _imports(source: Source) -> Iterator[Edit]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if is_root(alias.name):
                    yield from _renamed(source, source.start(alias), _NAME, alias.name)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and is_root(node.module):
            assert node.module is not None
            yield from _renamed(source, source.start(node), _FROM, node.module)


def _uses(source: Source) -> Iterator[Edit]:
    """The name that `import root` or `import root.module` binds, wherever it is used."""
    bound = {
        alias.name.partition(".")[0]
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.asname is None and is_root(alias.name)
    }
    if not bound:
        return
    for node in ast.walk(source.tree):
        _check_names(node, bound)
        if isinstance(node, ast.Name) and node.id in bound:
            yield from _renamed(source, source.start(node), _NAME, node.id)


def _check_names(node: ast.AST, bound: set[str]) -> None:
    """Raises: UnsupportedError if `node` gives a name to something else than the library."""
    names = {name: line for name, line in _bound_by(node) if name in {*bound, NEW_ROOT}}
    if isinstance(node, ast.Name) and node.id == NEW_ROOT and isinstance(node.ctx, ast.Store):
        names[NEW_ROOT] = node.lineno
    for name, line in names.items():
        raise UnsupportedError(
            f"line {line}: {name!r} also names something else than the library that this file "
            "imports; give that another name first"
        )


def _bound_by(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that a node binds, other than assignment and `import`, with the line."""
    if isinstance(node, ast.arg):
        yield node.arg, node.lineno
    elif isinstance(node, _NAMED) and node.name:
        yield node.name, node.lineno
    elif isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest, node.lineno
    elif isinstance(node, (ast.Global, ast.Nonlocal)):
        yield from ((name, node.lineno) for name in node.names)
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        for alias in node.names:
            is_library = alias.name in (*ROOTS, NEW_ROOT) and isinstance(node, ast.Import)
            if not is_library and (alias.asname or isinstance(node, ast.ImportFrom)):
                yield alias.asname or alias.name, node.lineno


def _strings(source: Source) -> Iterator[Edit]:
    for node, path in module_strings(source.tree):
        yield from _renamed(source, source.start(node), _LITERAL, path)


def module_strings(tree: ast.Module) -> Iterator[tuple[ast.expr, str]]:
    """Strings that are a path below a root, and roots given to what takes modules by name.

    Of an f-string given that way, the path is what comes before its first value.
    """
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # prose
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped.update(id(part) for part in ast.walk(node) if part is not node)
    given = {id(node) for node in _given_as_modules(tree)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Constant, ast.JoinedStr)) and id(node) not in skipped:
            path = _path_in(node, id(node) in given)
            if path is not None:
                yield node, path


def _path_in(node: ast.expr, is_given: bool) -> str | None:
    """The module path that a string is, or that an f-string begins with."""
    if isinstance(node, ast.JoinedStr) and node.values and is_given:
        text = _text(node.values[0])
        return text if text.startswith(tuple(f"{root}." for root in ROOTS)) else None
    text = _text(node)
    return text if _MODULE_PATH.fullmatch(text) or (is_given and text in ROOTS) else None


def _text(node: ast.AST) -> str:
    """The text of a string; empty for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return ""


def _given_as_modules(tree: ast.Module) -> Iterator[ast.AST]:
    """What may hold the name of a module because of where it stands."""
    for node in ast.walk(tree):
        places: list[ast.expr] = []
        if isinstance(node, ast.Call):
            function = node.func
            is_function = isinstance(function, ast.Name) and function.id in _FUNCTIONS
            is_method = isinstance(function, ast.Attribute) and function.attr in _METHODS
            places = node.args if is_function or is_method else []
        elif isinstance(node, ast.Subscript) and _is_sys_modules(node.value):
            places = [node.slice]
        elif isinstance(node, ast.Compare) and any(map(_is_sys_modules, node.comparators)):
            places = [node.left]
        for place in places:
            yield from ast.walk(place)


def _is_sys_modules(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "modules"

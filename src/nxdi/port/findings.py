"""What a port has to know about a source: each NxDI name it uses, each method it overrides."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from nxdi import absent
from nxdi.port.names import BASE_CLASSES, MODULES, SDK, Status, resolve, resolve_method
from nxdi.port.rewrite import NEW_ROOT, ROOTS, module_strings, rewrite
from nxdi.port.source import Source

_LIBRARIES = (*ROOTS, NEW_ROOT)  # a file that was ported before is checked like any other
_MENTION = re.compile(rf"\b(?:{'|'.join(ROOTS)})\b")


class Finding(NamedTuple):
    """One name that a file uses, as the file spells it."""

    line: int
    name: str
    status: Status
    note: str


def port(text: str) -> tuple[str, list[Finding]]:
    """A source with its imports rewritten, and what was found in it, by line.

    Raises: UnsupportedError as `rewrite` does.
    """
    new, tree = rewrite(text), Source(text).tree
    bindings = dict(_bindings(tree))
    found = [
        *_imports(tree),
        *_uses(tree, bindings),
        *_overrides(tree, bindings),
        *_mentions(new),
    ]
    return new, sorted(set(found))


def _fate(line: int, name: str) -> Iterator[Finding]:
    """What becomes of a dotted name; nothing if it belongs to neither library nor the SDK."""
    root, _, path = name.partition(".")
    if root in SDK:
        note = f"{SDK[root]}, only where the Neuron SDK is installed; write it in torch"
        yield Finding(line, name, Status.MISSING, note)
    elif root in _LIBRARIES:
        known, entry = resolve(path)
        if entry is not None:
            yield Finding(line, f"{root}.{known}".rstrip("."), *entry)
        elif root != NEW_ROOT:
            note = f"nxdi has no such name; see {absent.GUIDE}"
            yield Finding(line, name, Status.MISSING, note)


def _imports(tree: ast.Module) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _fate(alias.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield from _fate(alias.lineno, f"{node.module}.{alias.name}")
    for text, path in module_strings(tree):
        if isinstance(text, ast.Constant):
            yield from _fate(text.lineno, path.replace(":", "."))


def _bindings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names that imports bind, with the dotted name each stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.partition(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (root, root)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _dotted(node: ast.expr, bindings: Mapping[str, str]) -> str | None:
    """The dotted name that `a` or `a.b.c` stands for, if an import binds `a`."""
    below: list[str] = []
    while isinstance(node, ast.Attribute):
        below.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in bindings:
        return None
    return ".".join([bindings[node.id], *below])


def _uses(tree: ast.Module, bindings: Mapping[str, str]) -> Iterator[Finding]:
    """Attributes of imported modules of the two libraries."""
    modules = {
        local: name
        for local, name in bindings.items()
        if name.partition(".")[0] in _LIBRARIES and name.partition(".")[2] in MODULES
    }
    parts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in parts:
            name = _dotted(node, modules)
            if name is not None:
                yield from _fate(node.lineno, name)


def _overrides(tree: ast.Module, bindings: Mapping[str, str]) -> Iterator[Finding]:
    """Methods of subclasses of NxDI's bases that mean something else here."""
    bases = {f"{root}.{path}" for root in _LIBRARIES for path in BASE_CLASSES}
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    ports: set[str] = set()
    for node in sorted(classes, key=lambda node: node.lineno):
        parents = {_dotted(base, bindings) for base in node.bases}
        names = {base.id for base in node.bases if isinstance(base, ast.Name)}
        if not (parents & bases or names & ports):
            continue
        ports.add(node.name)
        for method in node.body:
            if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)):
                entry = resolve_method(method.name)
                if entry is not None:
                    yield Finding(method.lineno, f"{node.name}.{method.name}", *entry)


def _mentions(text: str) -> Iterator[Finding]:
    """Strings that still name one of the libraries after the rewriting."""
    if not _MENTION.search(text):
        return
    tree = Source(text).tree
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            for name in _MENTION.findall(node.value):
                note = "in a string that was left as it is; rename it if it is a module path"
                yield Finding(node.lineno, name, Status.CHANGED, note)

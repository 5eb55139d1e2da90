"""Imports go down the layers only, and nothing imports what only the Neuron SDK has."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import nxdi

ROOT = Path(nxdi.__file__).parent

LAYERS = {
    "errors": 0,
    "types": 0,
    "_version": 1,
    "env": 1,
    "absent": 1,
    "config": 2,
    "graph": 3,
    "kernels": 3,
    "parallel_layers": 3,
    "modules": 4,
    "runtime": 5,
    "models": 6,
    "generation": 7,
    # Nothing below imports these.
    "integrations": 8,
    "cli": 8,
    "port": 8,
    "tools": 8,
    "utils": 8,
    "__main__": 8,
}
# The runtime knows nn.Module, not our modules.
HIGHEST_BELOW = {"runtime": 3}

SDK_ONLY = {"torch_neuronx", "torch_xla", "neuronx_distributed", "neuronxcc", "nki", "nkilib"}
# Modules of NKI kernels, which only `load_kernels` imports: the compiler wants plain imports.
KERNELS = "nxdi.kernels.nki."
MAY_USE_SDK = (
    "nxdi.runtime.backends.neuron",
    KERNELS,
    "nxdi.parallel_layers.xla_collectives",
    "nxdi.tools.lowering.",
)


def module_name(path: Path) -> str:
    parts = ["nxdi", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts).removesuffix(".__init__")


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every absolute name that a module imports, wherever in it, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "." * node.level + (node.module or ""), node.lineno
            else:
                for alias in node.names:
                    yield f"{node.module}.{alias.name}", node.lineno


def package_of(name: str) -> str | None:
    """The part of nxdi that a name belongs to: "graph" for "nxdi.graph.plan"; None outside."""
    parts = name.split(".")
    return parts[1] if parts[0] == "nxdi" and len(parts) > 1 else None


def at_import_time(tree: ast.Module) -> ast.Module:
    """What runs when a module is imported: no functions, no blocks for type checkers."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.If | None:
            is_typing = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if is_typing else node

    stripped = Strip().visit(tree)
    assert isinstance(stripped, ast.Module)
    return stripped


def violations(name: str, source: str) -> list[str]:
    """What the module called `name` imports and may not."""
    found, tree, own = [], ast.parse(source), package_of(name)
    for target, line in imported(tree):
        other = package_of(target)
        if target.startswith("."):
            found.append(f"{name}:{line} relative import {target}")
        if target.split(".")[0] in SDK_ONLY and not name.startswith(MAY_USE_SDK):
            found.append(f"{name}:{line} imports {target}")
        if own is None or other not in LAYERS or other == own:
            continue
        highest = HIGHEST_BELOW.get(own, LAYERS[own] - (LAYERS[own] < 8))
        if LAYERS[other] > highest:
            found.append(f"{name}:{line} imports {target}, layer {LAYERS[other]} > {highest}")
    found += [
        f"{name}:{line} imports {target} when it is imported itself"
        for target, line in imported(at_import_time(tree))
        if target.split(".")[0] in SDK_ONLY and not name.startswith(KERNELS)
    ]
    found += [
        f"{name}:{line} imports {target}; use load_kernels"
        for target, line in imported(tree)
        if target.startswith(KERNELS)
        and target != f"{KERNELS}load_kernels"
        and not name.startswith(KERNELS)
    ]
    return found


SOURCES = sorted(ROOT.rglob("*.py"))


def test_every_part_of_the_library_has_a_layer() -> None:
    parts = {package_of(module_name(path)) for path in SOURCES} - {None}
    assert parts <= LAYERS.keys()


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    assert violations(module_name(path), path.read_text(encoding="utf-8")) == []


def test_the_root_loads_almost_nothing() -> None:
    tree = at_import_time(ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8")))
    parts = {package_of(name) for name, _ in imported(tree)} - {None}
    assert parts == {"absent", "errors", "_version"}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("nxdi.graph.x", "from nxdi.modules.norm import RMSNorm"),
        ("nxdi.graph.x", "from nxdi.kernels import masks"),
        ("nxdi.kernels.x", "import nxdi.parallel_layers.groups"),
        ("nxdi.config.x", "def f():\n    from nxdi.graph import plan"),
        ("nxdi.runtime.x", "from nxdi.modules.norm import RMSNorm"),
        ("nxdi.modules.x", "from nxdi import runtime"),
        ("nxdi.generation.x", "from nxdi.utils.hf_adapter import load_pretrained_config"),
        ("nxdi.models.x", "from . import decoder"),
        ("nxdi.runtime.backends.neuron.x", "import torch_xla"),
        ("nxdi.modules.x", "def f():\n    import torch_neuronx"),
        ("nxdi.modules.x", "from nxdi.kernels.nki import rmsnorm"),
    ],
)
def test_violations_are_seen(name: str, source: str) -> None:
    assert violations(name, source) != []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("nxdi.graph.x", "from nxdi.graph.plan import GraphPlan\nfrom nxdi import env"),
        ("nxdi.runtime.x", "import nxdi\nfrom nxdi.parallel_layers.groups import World"),
        ("nxdi.cli.x", "from nxdi.utils.hf_adapter import load_pretrained_config"),
        ("nxdi.runtime.backends.neuron.x", "def f():\n    import torch_xla"),
        ("nxdi.kernels.nki.x", "import nki.isa as nisa"),
        ("nxdi.modules.x", "from nxdi.kernels.nki import load_kernels"),
    ],
)
def test_what_is_allowed(name: str, source: str) -> None:
    assert violations(name, source) == []

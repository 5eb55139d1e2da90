"""The table that the double is made from says what the SDK's source says.

Needs no SDK: NXD_SOURCE names a checkout of its public repository, which is parsed, not imported.
"""

from __future__ import annotations

import ast
import os
from inspect import Parameter
from pathlib import Path

import pytest

from neuron.nxd_signatures import PUBLISHED, parameters_of, read_parameters


def differences(root: Path) -> list[str]:
    """A line for each published name whose definition below `root` is missing or another."""
    found = []
    for name, (file, text) in PUBLISHED.items():
        try:
            tree = ast.parse((root / file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            found.append(f"{name}: no file {file}")
            continue
        definition = _find(tree, name.removeprefix("trace.functions.").split("."))
        if definition is None:
            found.append(f"{name}: not in {file}")
            continue
        expected, actual = parameters_of(text), read_parameters(definition.args)
        if expected != actual:
            found.append(f"{name}: {_shown(actual)}, not {_shown(expected)}")
    return found


def _find(tree: ast.AST, path: list[str]) -> ast.FunctionDef | None:
    for part in path:
        bodies = getattr(tree, "body", [])
        named = (node for node in bodies if getattr(node, "name", None) == part)
        tree = next(named, ast.Pass())
    return tree if isinstance(tree, ast.FunctionDef) else None


def _shown(parameters: list[Parameter]) -> str:
    return ", ".join(map(str, parameters))


@pytest.mark.skipif("NXD_SOURCE" not in os.environ, reason="NXD_SOURCE names no checkout")
def test_the_table_is_what_the_source_says() -> None:
    root = Path(os.environ["NXD_SOURCE"])
    assert differences(root / "src" / "neuronx_distributed") == []


def make_tree(root: Path) -> Path:
    """A tree of sources with everything the table names."""
    methods: dict[str, dict[str, list[str]]] = {}
    for name, (file, text) in PUBLISHED.items():
        *owner, function = name.removeprefix("trace.functions.").split(".")
        line = f"def {function}({text}): ..."
        methods.setdefault(file, {}).setdefault("".join(owner), []).append(line)
    for file, owners in methods.items():
        lines = []
        for owner, functions in owners.items():
            lines += (
                [f"class {owner}:", *(f"    {line}" for line in functions)]
                if owner
                else (functions)
            )
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines), encoding="utf-8")
    return root


def test_a_tree_that_matches(tmp_path: Path) -> None:
    assert differences(make_tree(tmp_path)) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "seen"),
    [
        ("trace/functions.py", "spmd=True", "is_spmd=True", "trace.functions.trace: model"),
        ("trace/functions.py", "logical_nc_config=1", "logical_nc_config=2", "not wlo_artifacts"),
        ("trace/functions.py", "def compile_wlo", "def compile_weights", "not in trace/functions"),
        ("trace/functions.py", "hlo_module, metaneff", "metaneff, hlo_module", "functions.compile"),
        ("trace/nxd_model/nxd_model.py", "class NxDModel", "class Model", "NxDModel.load: not in"),
        ("trace/nxd_model/nxd_model.py", "rank)", "rank, device=None)", "neuron_buffer"),
        ("trace/nxd_model/nxd_model.py", "*args, model_name", "model_name", "NxDModel.forward"),
        ("trace/parallel_context.py", "lnc_size=None", "lnc_size=LNC", "lnc_size='LNC'"),
    ],
)
def test_differences_are_seen(file: str, old: str, new: str, seen: str, tmp_path: Path) -> None:
    path = make_tree(tmp_path) / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    found = differences(tmp_path)
    assert found
    assert any(seen in line for line in found), found


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    (make_tree(tmp_path) / "trace/parallel_context.py").unlink()
    assert "NxDParallelState.__enter__: no file trace/parallel_context.py" in differences(tmp_path)

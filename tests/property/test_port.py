"""Laws of `nxdi port`: it renames the two roots and changes nothing else."""

from __future__ import annotations

import ast
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from nxdi.errors import UnsupportedError
from nxdi.port.files import port_file
from nxdi.port.findings import port
from nxdi.port.rewrite import rewrite

ROOT = re.compile("neuronx_distributed(_inference)?")
PATHS = [
    "neuronx_distributed",
    "neuronx_distributed_inference",
    "neuronx_distributed.utils",
    "neuronx_distributed_inference.models.config",
    "neuronx_distributed_training.x",
    "torch.nn",
    "nxdi.models",
]
FORMS = [
    "import {0}",
    "import {0} as a, {1}",
    "import {0} as nxd; é = '{1}'; nxd.x",
    "from {0} import x",
    "from {0} import (\n    x as y,  # {1}\n    z,\n)",
    "from \\\n  {0} import x",
    "def f():\n    import {0}\n    return {1}.y",
    "try:\n    import {0}\nexcept ImportError:\n    neuronx_distributed = None",
    "x = {0}",
    "x = f'{0}.{{y}} {1}'",
    'x = """{0}""" "{1}"',
    "'''{0}'''",
    "import_module(f'{0}.{{y}}'), patch('{1}')",
    "class A({0}.B):\n    def perform_prefill(self): ...",
    "sys.modules['{0}']  # {1} é",
    "def neuronx_distributed(): ...",
    "nxdi = 1",
]
statements = st.builds(str.format, st.sampled_from(FORMS), *[st.sampled_from(PATHS)] * 2)
newlines = st.sampled_from(["\n", "\r\n", "\r"])


@st.composite
def sources(draw: st.DrawFn) -> str:
    lines = draw(st.lists(statements, max_size=6))
    return "".join(f"{line}\n".replace("\n", draw(newlines)) for line in lines)


@given(sources())
def test_only_roots_are_renamed_and_only_once(text: str) -> None:
    try:
        new = rewrite(text)
    except UnsupportedError:
        return
    assert rewrite(new) == new
    assert ROOT.sub("nxdi", new) == ROOT.sub("nxdi", text)
    imported = [
        name.split(".")[0]
        for node in ast.walk(ast.parse(new))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else names(node))
        if name is not None
    ]
    assert not {"neuronx_distributed", "neuronx_distributed_inference"} & set(imported)


def names(node: ast.Import) -> list[str]:
    return [alias.name for alias in node.names]


@given(sources())
def test_the_report_names_lines_of_the_file(text: str) -> None:
    with suppress(UnsupportedError):
        new, findings = port(text)
        num_lines = len(re.split("\r\n|\r|\n", text))
        assert all(1 <= finding.line <= num_lines for finding in findings)
        again = {(finding.line, finding.status) for finding in port(new)[1]}
        assert again <= {(finding.line, finding.status) for finding in findings}


@given(st.text() | sources().map(lambda text: ROOT.sub("torch", text)))
def test_a_file_without_the_roots_is_unchanged(text: str) -> None:
    assert rewrite(text) == text


@given(st.binary() | sources().map(str.encode) | st.text().map(str.encode), st.integers(0, 255))
def test_any_bytes_are_ported_or_refused(data: bytes, byte: int) -> None:
    damaged = data.replace(b"i", bytes([byte]), 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.py")
        path.write_bytes(damaged)
        file = port_file(path)
        assert file.error or file.old.encode(file.encoding) == damaged
        assert not (file.error and file.is_changed)

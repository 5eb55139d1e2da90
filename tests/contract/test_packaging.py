"""What is installed: the wheel's contents, its command, its requirements, and the public names."""

from __future__ import annotations

import configparser
import email
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import nxdi
import nxdi.cli.inference_demo
import nxdi.integrations.vllm

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy so that the working tree stays as it is."""
    copy = tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src" / "nxdi", copy / "src" / "nxdi")
    command = [sys.executable, "setup.py", "--quiet", "bdist_wheel"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (path,) = (copy / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def metadata_file(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"nxdi-{nxdi.__version__}.dist-info/{name}").decode()


def test_every_source_file_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    source = ROOT / "src"
    kinds = ("*.py", "*.cpp", "*.h", "py.typed")
    expected = {p.relative_to(source).as_posix() for kind in kinds for p in source.rglob(kind)}
    packaged = {name for name in wheel.namelist() if not name.startswith("nxdi-")}
    assert "nxdi/py.typed" in packaged
    assert packaged == {name for name in expected if ".egg-info" not in name}


def test_every_folder_with_sources_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "src" / "nxdi").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def required_names(wheel: zipfile.ZipFile, *, extras: bool) -> set[str]:
    metadata = email.message_from_string(metadata_file(wheel, "METADATA"))
    lines = metadata.get_all("Requires-Dist") or []
    names = {line: re.match(r"[\w.-]+", line) for line in lines if extras or "extra ==" not in line}
    return {match.group() for match in names.values() if match}


def test_base_requirements(wheel: zipfile.ZipFile) -> None:
    base = {"torch", "transformers", "safetensors", "numpy", "tqdm", "filelock"}
    base |= {"packaging", "pyyaml"}  # which transformers needs as well
    assert required_names(wheel, extras=False) == base


def test_constraints_pin_every_requirement(wheel: zipfile.ZipFile) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    assert required_names(wheel, extras=True) <= pinned


def entry_points_of(wheel: zipfile.ZipFile) -> dict[str, dict[str, Any]]:
    parser = configparser.ConfigParser()
    parser.read_string(metadata_file(wheel, "entry_points.txt"))
    return {
        group: {
            name: EntryPoint(name, value, group).load() for name, value in parser[group].items()
        }
        for group in parser.sections()
    }


def test_entry_points(wheel: zipfile.ZipFile) -> None:
    vllm = nxdi.integrations.vllm
    assert entry_points_of(wheel) == {
        "console_scripts": {
            "nxdi": nxdi.cli.main,
            "inference_demo": nxdi.cli.inference_demo.main,
        },
        "vllm.platform_plugins": {"nxdi": vllm.register},
        "vllm.general_plugins": {"nxdi": vllm.register_models},
    }


@pytest.mark.parametrize("name", nxdi.__all__)
def test_public_names_resolve(name: str) -> None:
    assert getattr(nxdi, name) is not None
    assert name in dir(nxdi)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'AutoModel'"):
        nxdi.AutoModel  # noqa: B018 - reading it is the test

